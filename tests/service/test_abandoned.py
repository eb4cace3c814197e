"""Nothing is begun for a caller who has left: on every route, over both transports and streams."""

import asyncio
import base64
import re
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest

from service.grpc.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    features_pb2,
    image_pb2,
    open_inference_pb2,
    segment_pb2,
    stream_pb2,
)
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.grpc.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub
from service.images import ImagePreparer
from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Entered = Callable[[], Awaitable[bool]]
Encode = Callable[..., bytes]
Send = Callable[[Server, str, bytes, float], Awaitable[str]]
TIMEOUT_S = 20.0
# Long enough for a request to be on its way into the queue by then, also on a busy machine.
SOON_S = 0.5


async def send_rest(server: Server, route: str, image: bytes, timeout_s: float) -> str:
    """Ask, and close the connection when cancelled; the status."""
    headers = {"X-Request-Timeout-Ms": str(int(1000 * timeout_s))}
    kind, _, what = route.partition("_")
    query = "?classes=dog,sky" if kind in {"segment", "slide", "classify"} else ""
    if kind == "slide":
        kind, query = "segment", f"{query}&mode=slide"
    url = f"http://127.0.0.1:{server.ports['http']}/v1/{what}:{kind}{query}"
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        if kind == "infer":
            encoded = base64.b64encode(image).decode()
            tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}
            url = f"http://127.0.0.1:{server.ports['http']}/v2/models/fake/infer"
            answer = await client.post(url, json={"inputs": [tensor]}, headers=headers)
        elif what == "texts":
            answer = await client.post(url, json={"texts": ["dog"]}, headers=headers)
        else:
            headers["Content-Type"] = "image/png"
            answer = await client.post(url, content=image, headers=headers)
    return str(answer.status_code)


def infer_request(image: bytes) -> open_inference_pb2.ModelInferRequest:
    request = open_inference_pb2.ModelInferRequest(model_name="fake")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(image)
    return request


def to_rpc(route: str, image: bytes) -> tuple[str, Any]:
    """The RPC of a route and its request."""
    images = [image_pb2.Image(encoded=image)]
    names = [segment_pb2.SegmentClass(name=name) for name in ("dog", "sky")]
    rpcs: dict[str, tuple[str, Any]] = {
        "embed_images": ("EmbedImages", embed_pb2.EmbedImagesRequest(images=images)),
        "embed_texts": ("EmbedTexts", embed_pb2.EmbedTextsRequest(texts=["dog"])),
        "segment_images": (
            "SegmentImages",
            segment_pb2.SegmentImagesRequest(images=images, classes=names),
        ),
        "slide_images": (
            "SegmentImages",
            segment_pb2.SegmentImagesRequest(
                images=images, classes=names, mode=segment_pb2.SEGMENT_MODE_SLIDE
            ),
        ),
        "classify_images": (
            "ClassifyImages",
            classify_pb2.ClassifyImagesRequest(images=images, classes=names),
        ),
        "features_images": (
            "VisualizeFeatures",
            features_pb2.VisualizeFeaturesRequest(images=images),
        ),
        "depth_images": ("EstimateDepth", dense_pb2.EstimateDepthRequest(images=images)),
        "normals_images": ("EstimateNormals", dense_pb2.EstimateNormalsRequest(images=images)),
        "infer_images": ("ModelInfer", infer_request(image)),
    }
    return rpcs[route]


async def send_grpc(server: Server, route: str, image: bytes, timeout_s: float) -> str:
    """Ask, and cancel the RPC when cancelled; the name of the code."""
    method, request = to_rpc(route, image)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        await channel.channel_ready()  # the time is for the server, and not for connecting
        stub = GRPCInferenceServiceStub if method == "ModelInfer" else EncoderServiceStub
        call: Any = getattr(stub(channel), method)(request, timeout=timeout_s)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        except asyncio.CancelledError:
            call.cancel()
            raise
        return "OK"


async def send_stream(server: Server, route: str, image: bytes, timeout_s: float) -> str:
    """Ask on a stream, and cancel that when cancelled; the name of the code, of either."""
    method, request = to_rpc(route, image)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        await channel.channel_ready()
        if method == "ModelInfer":
            stream, item = GRPCInferenceServiceStub(channel).ModelStreamInfer, request
        else:
            field = re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()
            item = stream_pb2.StreamRequest(**{field: request})
            stream = EncoderServiceStub(channel).Stream
        call: Any = stream(iter([item]), timeout=timeout_s)
        try:
            (answer,) = [answer async for answer in call]
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if method == "ModelInfer":
            return "DEADLINE_EXCEEDED" if "deadline" in answer.error_message else "OK"
        names = {code.value[0]: code.name for code in grpc.StatusCode}
        return str(names[answer.error.code])


ALL = pytest.mark.parametrize(
    "send", [send_rest, send_grpc, send_stream], ids=["rest", "grpc", "stream"]
)
ROUTES = pytest.mark.parametrize(
    "route",
    [
        *("embed_images", "segment_images", "depth_images", "normals_images", "infer_images"),
        *("slide_images", "classify_images", "features_images"),
        "embed_texts",
    ],
)
LATE = {
    send_rest: "504",
    send_grpc: "DEADLINE_EXCEEDED",
    send_stream: "DEADLINE_EXCEEDED",
}


def sample(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"tipserve_{name}", labels) or 0.0


def abandoned(server: Server) -> float:
    reasons = ("cancelled", "deadline")
    return sum(sample(server, "abandoned_total", reason=reason) for reason in reasons)


def num_waiting(server: Server) -> float:
    families = {family.name: family for family in server.metrics.registry.collect()}
    return sum(s.value for s in families["tipserve_queue_depth"].samples)


def num_ended(server: Server) -> float:
    families = {family.name: family for family in server.metrics.registry.collect()}
    return sum(s.value for s in families["tipserve_requests"].samples)


async def until(condition: Callable[[], bool]) -> None:
    """Give other tasks and threads their turn until something is so."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.001)


async def end(request: "asyncio.Future[str]", send: Send, reason: str) -> None:
    """Hang up, or let the deadline pass."""
    if reason == "hangs up":
        request.cancel()
        with suppress(asyncio.CancelledError):
            await request
    else:
        assert await request == LATE[send]  # type: ignore[index]


REASONS = pytest.mark.parametrize("reason", ["hangs up", "is late"])


@pytest.mark.slow
@ALL
@ROUTES
@REASONS
async def test_who_leaves_the_queue_is_not_computed(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    entered: Entered,
    send: Send,
    route: str,
    reason: str,
) -> None:
    async with serving() as server:
        runtime.gate.clear()
        first = asyncio.ensure_future(send(server, "embed_images", encode_image(), TIMEOUT_S))
        assert await entered()
        timeout_s = TIMEOUT_S if reason == "hangs up" else SOON_S
        leaving = asyncio.ensure_future(send(server, route, encode_image(seed=1), timeout_s))
        if reason == "hangs up":
            await until(lambda: num_waiting(server) > 0)
        await end(leaving, send, reason)
        await until(lambda: abandoned(server) > 0)
        await until(lambda: num_waiting(server) == 0)
        await until(lambda: sample(server, "inflight") == 1)
        runtime.gate.set()
        assert await first in {"200", "OK"}
    assert (runtime.num_images, runtime.num_texts, runtime.num_maps) == (1, 0, 0)


@pytest.mark.slow
@ALL
@ROUTES
@REASONS
async def test_who_leaves_before_decoding_is_not_decoded(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    monkeypatch: pytest.MonkeyPatch,
    send: Send,
    route: str,
    reason: str,
) -> None:
    decoded: list[str] = []
    for name in ("measure", "prepare"):
        method = getattr(ImagePreparer, name)

        def record(*given: Any, method: Any = method, **named: Any) -> Any:
            decoded.append(method.__name__)
            return method(*given, **named)

        monkeypatch.setattr(ImagePreparer, name, record)
    release = threading.Event()
    async with serving(pool_threads=1) as server:
        server.pool.submit(release.wait, TIMEOUT_S)
        timeout_s = TIMEOUT_S if reason == "hangs up" else SOON_S
        leaving = asyncio.ensure_future(send(server, route, encode_image(), timeout_s))
        if reason == "hangs up":
            await until(lambda: server.pool._work_queue.qsize() > 0)
        await end(leaving, send, reason)
        await until(lambda: num_ended(server) == 1)
        assert sample(server, "inflight") == 0
        release.set()
        # What is in JSON are no items yet: the body itself waited to be read.
        is_body = send is send_rest and route in {"embed_texts", "infer_images"}
        await until(lambda: is_body or abandoned(server) > 0)
        await until(lambda: server.pool._work_queue.qsize() == 0)
    assert (runtime.num_images, runtime.num_texts, runtime.num_maps, decoded) == (0, 0, 0, [])
