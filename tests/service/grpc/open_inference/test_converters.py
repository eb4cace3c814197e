"""Messages made up by callers become requests or errors of ours, and answers hold every byte."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest, ServiceError
from service.grpc.generated import open_inference_pb2 as pb
from service.grpc.open_inference import from_infer, to_infer, to_parameters
from service.messages import RequestLimits
from service.open_inference.inference import InferAnswer

LIMITS = RequestLimits(
    max_images=4,
    max_texts=8,
    max_classes=1,
    max_image_bytes=1000,
    max_image_pixels=1000,
    max_request_bytes=100_000,
)
TENSORS = st.builds(
    lambda name, datatype, shape, values, items, ints: pb.ModelInferRequest.InferInputTensor(
        name=name,
        datatype=datatype,
        shape=shape,
        contents=pb.InferTensorContents(
            fp32_contents=values, bytes_contents=items, uint_contents=ints
        ),
    ),
    st.sampled_from(["image", "pixels", "pixel_values", "text", ""]),
    st.sampled_from(["BYTES", "UINT8", "FP32", ""]),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=4),
    st.lists(st.floats(width=32), max_size=3),
    st.lists(st.binary(max_size=5), max_size=3),
    st.lists(st.integers(0, 2**32 - 1), max_size=3),
)
REQUESTS = st.builds(
    lambda inputs, raw, name: pb.ModelInferRequest(
        inputs=inputs, raw_input_contents=raw, model_name=name
    ),
    st.lists(TENSORS, max_size=3),
    st.lists(st.binary(max_size=20), max_size=3),
    st.text(max_size=5),
)


@given(REQUESTS)
def test_any_message_becomes_a_request_or_an_error_of_ours(request_: pb.ModelInferRequest) -> None:
    with suppress(ServiceError):
        to_infer(request_, LIMITS)


@given(st.binary(max_size=200))
def test_any_bytes_that_are_a_message_are_read_or_refused(raw: bytes) -> None:
    try:
        message = pb.ModelInferRequest.FromString(raw)
    except Exception:  # no message at all: the interceptor's business
        return
    with suppress(ServiceError):
        to_infer(message, LIMITS)


def test_an_answer_holds_its_arrays() -> None:
    arrays: dict[str, Any] = {
        "cls2": np.arange(6, dtype=np.float32).reshape(2, 3),
        "cls1": np.ones((1, 2), np.float16),
    }
    answer = from_infer(InferAnswer(model="tiny", outputs=arrays), "7")
    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "1", "7")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("cls2", "FP32", [2, 3]),
        ("cls1", "FP16", [1, 2]),
    ]
    for raw, array in zip(answer.raw_output_contents, arrays.values(), strict=True):
        assert raw == array.tobytes()


def test_parameters_come_from_whichever_field() -> None:
    request = pb.ModelInferRequest()
    request.parameters["a"].int64_param = -1
    request.parameters["b"].uint64_param = 1
    request.parameters["c"].bool_param = True
    request.parameters["d"].string_param = "x"
    request.parameters["e"].double_param = 0.5
    assert to_parameters(request.parameters) == {"a": -1, "b": 1, "c": True, "d": "x", "e": 0.5}
    request.parameters["f"].SetInParent()
    with pytest.raises(InvalidRequest, match="'f' has no value"):
        to_parameters(request.parameters)
