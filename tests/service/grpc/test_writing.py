"""Messages written item by item are the messages, and take less memory."""

import pytest
from google.protobuf.message import Message

from service.grpc.generated import (
    features_pb2,
    item_error_pb2,
    open_inference_pb2,
    stream_pb2,
    tensor_pb2,
)
from service.grpc.writing import STREAM_DEPTH, write_message


def features(*lengths: int) -> features_pb2.VisualizeFeaturesResponse:
    """An answer with maps of so many bytes; 0 is that of a failed item."""
    message = features_pb2.VisualizeFeaturesResponse(model="m")
    for length in lengths:
        item = message.maps.add()
        if length:
            item.features.data = b"x" * length
            item.features.shape.append(length)
    message.errors.append(item_error_pb2.ItemError(index=1, reason="invalid_image"))
    return message


@pytest.mark.parametrize(
    "message",
    [
        # Lengths of one, two, three and four bytes.
        features(1, 0, 118, 119, 120, 128, 16_370, 16_384, 2_097_140, 2_097_152),
        features(),
        open_inference_pb2.ModelInferResponse(
            model_name="m",
            parameters={"a": open_inference_pb2.InferParameter(int64_param=1)},
            outputs=[open_inference_pb2.ModelInferResponse.InferOutputTensor(name="o", shape=[2])],
            raw_output_contents=[b"1", b"2"],
        ),
        tensor_pb2.Tensor(shape=[1, 2], data=b"12", row_scales=[0.5]),
    ],
)
def test_what_is_written_is_the_message(message: Message) -> None:
    expected = type(message)()
    expected.CopyFrom(message)
    assert type(message).FromString(write_message(message)) == expected


def test_the_arrays_of_an_answer_in_a_stream_are_written_by_themselves() -> None:
    made = [
        stream_pb2.StreamResponse(id="a", index=2, visualize_features=features(3, 0, 300))
        for _ in range(2)
    ]
    assert stream_pb2.StreamResponse.FromString(write_message(made[0], STREAM_DEPTH)) == made[1]
    assert made[0].visualize_features.ByteSize() == 0
