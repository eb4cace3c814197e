"""One request of a stream of `EncoderService`: as a call, and how its answer or error is told."""

from collections.abc import Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from service.call import Call
from service.errors import InvalidRequest, ServiceError
from service.grpc.errors import CODE
from service.grpc.generated import stream_pb2
from service.grpc.unknown_fields import refuse_unknown_fields

# Streams take turns with unary RPCs and with REST: a pipeline does not keep others waiting.
FLOW: Final = "stream"

# What a request may ask for, and the RPC that answers it.
STREAMED: Final[Mapping[str, str]] = {
    "embed_images": "EmbedImages",
    "embed_texts": "EmbedTexts",
    "segment_images": "SegmentImages",
    "estimate_depth": "EstimateDepth",
    "estimate_normals": "EstimateNormals",
    "classify_images": "ClassifyImages",
    "visualize_features": "VisualizeFeatures",
}


def begin_item(request: stream_pb2.StreamRequest, call: Call) -> str:
    """Make the call one that waits for its turn, and say what it asks for: a key of `STREAMED`.

    Raises:
        InvalidRequest: It asks for nothing, or has a field or a time that makes no sense.
    """
    call.flow, call.is_patient = FLOW, True
    refuse_unknown_fields(request, is_deep=False)
    if request.HasField("timeout"):
        timeout_s = request.timeout.seconds + 1e-9 * request.timeout.nanos
        if timeout_s <= 0:
            raise InvalidRequest("timeout: give a time greater than zero.", param="timeout")
        call.deadline = min(call.deadline, call.started + timeout_s)
    asked: str | None = request.WhichOneof("request")
    if asked is None:
        raise InvalidRequest(
            f"request: ask for one of {', '.join(STREAMED)}.", code="missing_field", param="request"
        )
    return asked


def stream_answer(
    answer: Message, request: stream_pb2.StreamRequest, call: Call
) -> stream_pb2.StreamResponse:
    """An answer with what tells whose it is."""
    written = stream_pb2.StreamResponse(id=request.id, index=call.item or 0)
    getattr(written, request.WhichOneof("request") or "").CopyFrom(answer)
    return written


def stream_error(
    error: ServiceError, request: stream_pb2.StreamRequest | None, call: Call
) -> stream_pb2.StreamResponse:
    """What is answered to a request without an answer; its id too, where it could be read."""
    delay = None
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
    told = stream_pb2.StreamError(
        code=CODE[error.kind].value[0],
        reason=error.code,
        message=error.message,
        field=error.param or "",
        retry_delay=delay,
        request_id=call.request_id,
    )
    request_id = request.id if request is not None else ""
    return stream_pb2.StreamResponse(id=request_id, index=call.item or 0, error=told)
