"""One request to a running server: over REST, as an RPC, or on a gRPC stream."""

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import httpx
import pytest
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from service.grpc.generated import (
    encoder_service_pb2,
    image_pb2,
    open_inference_pb2,
    segment_pb2,
    stream_pb2,
)
from service.server import Server

LIMIT_S = 20.0
OK = {"200", "OK"}
INTERNAL = {"500", "INTERNAL"}
INVALID = {"422", "INVALID_ARGUMENT"}
UNAVAILABLE = {"503", "UNAVAILABLE"}
NOTHING: Mapping[str, str] = {}
DOG_AND_SKY = {"classes": [segment_pb2.SegmentClass(name=name) for name in ("dog", "sky")]}
ENCODER, INFERENCE = "/tipserve.v1.EncoderService", "/inference.GRPCInferenceService"


class Route(NamedTuple):
    """A capability: its path, its RPC, and the fields of the message besides the image."""

    path: str
    method: str
    fields: Mapping[str, Any] = {}


ROUTES = {
    "embed": Route("/v1/images:embed", "EmbedImages"),
    "segment": Route("/v1/images:segment?classes=dog,sky", "SegmentImages", DOG_AND_SKY),
    "slide": Route(
        "/v1/images:segment?classes=dog,sky&mode=slide",
        "SegmentImages",
        {**DOG_AND_SKY, "mode": segment_pb2.SEGMENT_MODE_SLIDE},
    ),
    "classify": Route("/v1/images:classify?classes=dog,sky", "ClassifyImages", DOG_AND_SKY),
    "features": Route("/v1/images:features", "VisualizeFeatures"),
    "depth": Route("/v1/images:depth", "EstimateDepth"),
    "normals": Route("/v1/images:normals", "EstimateNormals"),
    "texts": Route("/v1/texts:embed", "EmbedTexts", {"texts": ["dog"]}),
    "infer": Route("/v2/models/fake/infer", "ModelInfer"),
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a caller sees.

    Attributes:
        status: HTTP status, or the name of a gRPC code.
        code: Stable name of the error, if there is one.
        headers: Headers, or trailing metadata.
        text: The body, or the details of the status.
        messages: All messages of an RPC.
    """

    status: str
    code: str | None = None
    headers: Mapping[str, str]
    text: str
    messages: tuple[bytes, ...] = ()


Ask = Callable[..., Awaitable[Answer]]


async def ask_rest(
    server: Server,
    image: bytes = b"",
    route: str = "embed",
    *,
    timeout_s: float = LIMIT_S,
    headers: Mapping[str, str] = NOTHING,
) -> Answer:
    """Send a request by HTTP; cancelling it closes the connection."""
    given = {"X-Request-Timeout-Ms": str(int(1000 * timeout_s)), **headers}
    body: dict[str, Any] = {"content": image}
    if route == "infer":
        data = [base64.b64encode(image).decode()]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
        body = {"json": {"inputs": [tensor]}}
    elif route == "texts":
        body = {"json": ROUTES[route].fields}
    else:
        given["Content-Type"] = "image/png"
    async with http_client(server) as client:
        answer = await client.post(ROUTES[route].path, headers=given, **body)
    error = None if answer.is_success else answer.json()["error"]
    return Answer(
        status=str(answer.status_code),
        code=error["code"] if isinstance(error, dict) else None,
        headers=dict(answer.headers),
        text=answer.text,
    )


async def ask_grpc(
    server: Server,
    image: bytes = b"",
    route: str = "embed",
    *,
    timeout_s: float = LIMIT_S,
    headers: Mapping[str, str] = NOTHING,
) -> Answer:
    """Call the RPC of a route; cancelling it cancels the RPC."""
    service = INFERENCE if route == "infer" else ENCODER
    raw = message(route, image).SerializeToString()
    rpc = f"{service}/{ROUTES[route].method}"
    return await call_rpc(server, rpc, raw, timeout_s=timeout_s, headers=headers)


async def ask_stream(
    server: Server,
    image: bytes = b"",
    route: str = "embed",
    *,
    timeout_s: float = LIMIT_S,
    headers: Mapping[str, str] = NOTHING,
) -> Answer:
    """Send the request of a route on a stream of its own; the status is that of the request."""
    asked = message(route, image)
    if route == "infer":
        rpc = f"{INFERENCE}/ModelStreamInfer"
    else:
        field = re.sub(r"(?<!^)(?=[A-Z])", "_", ROUTES[route].method).lower()
        rpc, asked = f"{ENCODER}/Stream", stream_pb2.StreamRequest(**{field: asked})
    raw = asked.SerializeToString()
    answer = await call_rpc(server, rpc, raw, timeout_s=timeout_s, headers=headers)
    if not answer.messages:
        return answer
    (raw,) = answer.messages
    if route == "infer":
        text = open_inference_pb2.ModelStreamInferResponse.FromString(raw).error_message
        status = "DEADLINE_EXCEEDED" if "deadline" in text else "UNKNOWN" if text else "OK"
    else:
        error = stream_pb2.StreamResponse.FromString(raw).error
        text, status = error.message, CODE_NAMES[error.code]
    return Answer(status=status, headers=answer.headers, text=text)


CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
BOTH = pytest.mark.parametrize("ask", [ask_rest, ask_grpc], ids=["rest", "grpc"])
ALL = pytest.mark.parametrize(
    "ask", [ask_rest, ask_grpc, ask_stream], ids=["rest", "grpc", "stream"]
)


async def call_rpc(
    server: Server,
    rpc: str,
    raw: bytes = b"",
    *,
    timeout_s: float = LIMIT_S,
    headers: Mapping[str, str] = NOTHING,
) -> Answer:
    """Call an RPC of any kind with one message."""
    messages = []
    async with grpc_channel(server) as channel:
        await channel.channel_ready()  # the time limit is for the server, not for connecting
        # Works for every kind of RPC, since only one message is sent.
        call = channel.unary_stream(rpc)(raw, timeout=timeout_s, metadata=tuple(headers.items()))
        try:
            with suppress(grpc.aio.AioRpcError):
                async for answer in call:
                    messages.append(answer)
            trailers = dict(await call.trailing_metadata() or ())
            details = f"{await call.details()} {await call.debug_error_string()}"
            status = (await call.code()).name
        finally:
            call.cancel()
    packed = trailers.pop("grpc-status-details-bin", None)
    return Answer(
        status=status,
        code=None if packed is None else error_reason(packed),
        headers=trailers,
        text=details,
        messages=tuple(messages),
    )


def http_client(server: Server) -> httpx.AsyncClient:
    """A client of the REST port."""
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.ports['http']}", timeout=LIMIT_S)


def grpc_channel(server: Server) -> Any:
    """A channel with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{server.ports['grpc']}", options=options)


def message(route: str, image: bytes) -> Any:
    """The protobuf message of a route."""
    if route == "infer":
        request = open_inference_pb2.ModelInferRequest(model_name="fake")
        tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(image)
        return request
    service = encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"]
    kind = GetMessageClass(service.methods_by_name[ROUTES[route].method].input_type)
    images = {} if route == "texts" else {"images": [image_pb2.Image(encoded=image)]}
    return kind(**images, **ROUTES[route].fields)


def error_reason(packed: bytes) -> str | None:
    """The reason in the details of a status."""
    for detail in status_pb2.Status.FromString(packed).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return None
