"""The Open Inference Protocol over gRPC."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ServiceError
from service.grpc.generated import open_inference_pb2 as pb
from service.grpc.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub
from service.grpc.open_inference import to_infer
from service.server import Server
from tests.service.conftest import LIMITS, Encode, Serving

TENSORS = st.builds(
    lambda contents, **head: pb.ModelInferRequest.InferInputTensor(
        contents=pb.InferTensorContents(**contents), **head
    ),
    name=st.sampled_from(["image", "pixels", "pixel_values", "text", ""]),
    datatype=st.sampled_from(["BYTES", "UINT8", "FP32", ""]),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=4),
    contents=st.fixed_dictionaries(
        {
            "fp32_contents": st.lists(st.floats(width=32), max_size=3),
            "bytes_contents": st.lists(st.binary(max_size=5), max_size=3),
            "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=3),
        }
    ),
)


@given(st.lists(TENSORS, max_size=3), st.lists(st.binary(max_size=20), max_size=3))
def test_any_message_becomes_a_request_or_a_service_error(inputs: Any, raw: list[bytes]) -> None:
    with suppress(ServiceError):
        to_infer(pb.ModelInferRequest(inputs=inputs, raw_input_contents=raw), LIMITS)


LIMIT_S = 20.0


@pytest.fixture
async def server(serving: Serving) -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


def request_of(raw: Any = (), **tensor: Any) -> pb.ModelInferRequest:
    head = {"name": "image", "datatype": "BYTES", "shape": [1]}
    made = pb.ModelInferRequest.InferInputTensor(**head | tensor)
    return pb.ModelInferRequest(inputs=[made], raw_input_contents=raw)


async def ask(server: Server, rpc: str, request: Any) -> tuple[str, Any]:
    """Status, and the answer or the details."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{server.ports['grpc']}"
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        method = getattr(GRPCInferenceServiceStub(channel), rpc)
        try:
            return "OK", await method(request, timeout=LIMIT_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()


async def test_typed_and_raw_contents_have_the_same_answer(
    server: Server, encode_image: Encode
) -> None:
    image = encode_image()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3), dtype=np.uint8)
    planes = np.float32(0.5) * np.ones((1, 3, 28, 28), np.float32)
    for name, datatype, array, contents in (
        ("pixels", "UINT8", pixels, {"uint_contents": pixels.reshape(-1).tolist()}),
        ("pixel_values", "FP32", planes, {"fp32_contents": planes.reshape(-1).tolist()}),
        ("image", "BYTES", None, {"bytes_contents": [image]}),
    ):
        shape = [1] if array is None else array.shape
        head = {"name": name, "datatype": datatype, "shape": shape}
        packed = len(image).to_bytes(4, "little") + image if array is None else array.tobytes()
        typed = request_of(**head, contents=pb.InferTensorContents(**contents))
        answers = [
            await ask(server, "ModelInfer", request)
            for request in (typed, request_of(**head, raw=[packed]))
        ]
        assert answers[0][0] == answers[1][0] == "OK", answers
        assert answers[0][1] == answers[1][1]
        assert [output.name for output in answers[0][1].outputs] == ["patch_embeddings", "cls1"]


async def test_an_invalid_message_is_refused_with_the_reason(
    server: Server, encode_image: Encode
) -> None:
    contents = pb.InferTensorContents(bytes_contents=[encode_image()])
    newer, labels, shared, empty = (request_of(contents=contents) for _ in range(4))
    newer.inputs[0].MergeFromString(b"\xa2\x06\x01x")
    labels.outputs.add(name="cls1").parameters["classification"].int64_param = 3
    shared.inputs[0].parameters["shared_memory_region"].string_param = "a"
    empty.parameters["fit"].SetInParent()
    for request, reason in (
        (request_of(raw=[b"", b""]), "2 entries for 1 inputs"),
        (request_of(raw=[b"\x01\0\0\0x"], contents=contents), "not both"),
        (request_of(contents=pb.InferTensorContents(int_contents=[1])), "bytes_contents"),
        (
            request_of(datatype="INT64", contents=pb.InferTensorContents(int64_contents=[1])),
            "image is BYTES",
        ),
        (newer, "field number 100"),
        (labels, "outputs[0].parameters.classification: unknown field"),
        (shared, "inputs[0].parameters.shared_memory_region: unknown field"),
        (empty, "'fit' has no value"),
    ):
        code, details = await ask(server, "ModelInfer", request)
        assert (code, reason in details) == ("INVALID_ARGUMENT", True), details


async def test_management_is_off(server: Server) -> None:
    code, details = await ask(server, "RepositoryIndex", pb.RepositoryIndexRequest())
    assert (code, "enable_management" in details) == ("UNIMPLEMENTED", True)


async def test_readiness_follows_the_model(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # A collection of garbage takes over a second in a process full of libraries.
    monkeypatch.setattr("service.models.registry.collect_and_trim", lambda: None)
    for rpc, request in (
        ("ServerLive", pb.ServerLiveRequest()),
        ("ServerReady", pb.ServerReadyRequest()),
        ("ModelReady", pb.ModelReadyRequest(name="fake")),
    ):
        code, answer = await ask(server, rpc, request)
        assert (code, answer.live if rpc == "ServerLive" else answer.ready) == ("OK", True)
    assert (await ask(server, "ModelReady", pb.ModelReadyRequest(name="x")))[0] == "NOT_FOUND"
    await server.repository.unload("fake")
    assert (await ask(server, "ServerReady", pb.ServerReadyRequest()))[1].ready is False
