"""After a failure of any kind no answer contains the text of an exception, and nothing is held.

The faults are at the seams: the runtime, the data plane behind a transport, and its messages.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health

from service.grpc.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    features_pb2,
    image_pb2,
    open_inference_pb2,
    segment_pb2,
)
from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
SECRET = "the planted secret"
LIMIT_S = 20.0
SERVICE = "/tipserve.v1.EncoderService"

IMAGE_ROUTES = {
    "embed_images": "embed",
    "segment_images": "segment?classes=dog",
    "classify_images": "classify?classes=dog",
    "visualize_features": "features",
    "estimate_maps": "depth",
}
V2 = "V2 infer"
CAPABILITIES = [*IMAGE_ROUTES, V2]


async def over_rest(server: Server, capability: str, image: bytes) -> tuple[str, str]:
    """Status, and everything that the answer says."""
    base = f"http://127.0.0.1:{server.ports['http']}"
    headers = {"X-Request-Id": "asked-by-test"}
    async with httpx.AsyncClient(timeout=LIMIT_S, headers=headers) as client:
        if capability == V2:
            data = [base64.b64encode(image).decode()]
            tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
            answer = await client.post(f"{base}/v2/models/fake/infer", json={"inputs": [tensor]})
        else:
            url = f"{base}/v1/images:{IMAGE_ROUTES[capability]}"
            answer = await client.post(url, content=image, headers={"Content-Type": "image/png"})
    return str(answer.status_code), f"{answer.headers} {answer.text}"


def rpc_of(capability: str, image: bytes) -> tuple[str, Any]:
    images = [image_pb2.Image(encoded=image)]
    dog = [segment_pb2.SegmentClass(name="dog")]
    infer = open_inference_pb2.ModelInferRequest()
    infer.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        image
    )
    rpcs: dict[str, tuple[str, Any]] = {
        "embed_images": ("EmbedImages", embed_pb2.EmbedImagesRequest(images=images)),
        "segment_images": (
            "SegmentImages",
            segment_pb2.SegmentImagesRequest(images=images, classes=dog),
        ),
        "classify_images": (
            "ClassifyImages",
            classify_pb2.ClassifyImagesRequest(images=images, classes=dog),
        ),
        "visualize_features": (
            "VisualizeFeatures",
            features_pb2.VisualizeFeaturesRequest(images=images),
        ),
        "estimate_maps": ("EstimateDepth", dense_pb2.EstimateDepthRequest(images=images)),
        V2: ("ModelInfer", infer),
    }
    method, request = rpcs[capability]
    return f"{'/inference.GRPCInferenceService' if capability == V2 else SERVICE}/{method}", request


async def over_grpc(server: Server, capability: str, image: bytes) -> tuple[str, str]:
    """Status, and everything that the answer says."""
    rpc, request = rpc_of(capability, image)
    return await asyncio.to_thread(ask_grpc, server, rpc, request.SerializeToString())


def ask_grpc(server: Server, rpc: str, raw: bytes) -> tuple[str, str]:
    """Status, and everything that the answer says."""
    metadata = (("x-request-id", "asked-by-test"),)
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        call: Any = channel.stream_stream(rpc)(
            iter([raw]),  # type: ignore[arg-type]  # bytes go as they are
            timeout=LIMIT_S,
            metadata=metadata,
        )
        try:
            answers = list(call)
        except grpc.RpcError:
            answers = []
        said = f"{call.details()} {call.trailing_metadata()} {call.debug_error_string()} {answers}"
        return call.code().name, said


Ask = Callable[[Server, str, bytes], Awaitable[tuple[str, str]]]


async def is_nothing_held(server: Server) -> bool:
    """Whether in-flight count, admission, queue and body memory return to zero."""
    (model,) = server.models.models()
    for _ in range(int(LIMIT_S / 0.01)):
        held = (
            server.gate.num_in_flight,
            model.admission.cost,
            sum(model.queue_depths().values()),
            server.protection.body_memory.num_bytes,
        )
        if held == (0, 0, 0, 0):
            return True
        await asyncio.sleep(0.01)
    return False


async def fail(*_: object) -> Any:
    raise RuntimeError(SECRET)


async def answer_nonsense(*_: object) -> Any:
    return SECRET


@pytest.mark.slow
@pytest.mark.parametrize("ask", [over_rest, over_grpc], ids=["rest", "grpc"])
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("fault", ["runtime", "short batch", "data plane", "response"])
async def test_a_failure_sends_only_a_request_id_and_holds_nothing(
    serving: Serving,
    encode_image: Encode,
    monkeypatch: pytest.MonkeyPatch,
    runtime: "FakeRuntime",
    ask: Ask,
    capability: str,
    fault: str,
) -> None:
    image = encode_image()
    method = "embed_images" if capability == V2 else capability
    async with serving() as server:
        with monkeypatch.context() as planted:
            if fault == "data plane":
                planted.setattr(server.plane, method, fail)
            elif fault == "response":
                planted.setattr(server.plane, method, answer_nonsense)
            else:
                runtime.fault = "raise" if fault == "runtime" else "short"
            status, said = await ask(server, capability, image)
        runtime.fault = ""
        assert status == ("500" if ask is over_rest else "INTERNAL")
        for secret in (SECRET, "secret of the runtime", "RuntimeError", "AttributeError"):
            assert secret not in said
        assert "asked-by-test" in said
        assert await is_nothing_held(server)
        after, _ = await ask(server, capability, image)
    assert after in {"200", "OK"}, "the next request is served"


@pytest.mark.slow
@pytest.mark.parametrize("ask", [over_rest, over_grpc], ids=["rest", "grpc"])
@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_a_cancelled_request_holds_nothing(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    entered: Callable[[], Awaitable[bool]],
    ask: Ask,
    capability: str,
) -> None:
    async with serving() as server:
        runtime.gate.clear()
        send = over_rest if ask is over_rest else cancellable_rpc
        asking = asyncio.ensure_future(send(server, capability, encode_image()))
        assert await entered()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert await is_nothing_held(server)
        runtime.gate.set()
        after, _ = await ask(server, capability, encode_image())
    assert after in {"200", "OK"}


async def cancellable_rpc(server: Server, capability: str, image: bytes) -> tuple[str, str]:
    rpc, request = rpc_of(capability, image)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        call: Any = channel.unary_unary(rpc)(request.SerializeToString(), timeout=LIMIT_S)
        try:
            return "OK", str(await call)
        finally:
            call.cancel()


class Planted:
    """A (de)serializer that breaks."""

    def __call__(self, *_: object) -> Any:
        raise ValueError(SECRET)


@pytest.mark.parametrize("side", ["request_deserializer", "response_serializer"])
async def test_messages_that_cannot_be_read_or_written_tell_nothing(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, encode_image: Encode, side: str
) -> None:
    made = grpc.unary_unary_rpc_method_handler

    def make(behavior: Any, **functions: Any) -> Any:
        return made(behavior, **{**functions, side: Planted()})

    monkeypatch.setattr(grpc, "unary_unary_rpc_method_handler", make)
    request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=encode_image())])
    async with serving() as server:
        monkeypatch.undo()
        rpc, raw = f"{SERVICE}/EmbedImages", request.SerializeToString()
        status, said = await asyncio.to_thread(ask_grpc, server, rpc, raw)
    assert status == "INTERNAL"
    assert SECRET not in said
    assert "ValueError" not in said


@pytest.mark.parametrize(
    "rpc",
    [
        f"/{health.SERVICE_NAME}/Check",
        f"/{health.SERVICE_NAME}/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_malformed_messages_to_open_services_quote_nothing(
    serving: Serving, rpc: str
) -> None:
    async with serving() as server:
        status, said = await asyncio.to_thread(ask_grpc, server, rpc, b"\xff\xff\xff")
    assert status not in {"OK"}
    assert "DecodeError" not in said
    assert "parsing" not in said
