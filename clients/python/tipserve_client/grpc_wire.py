"""Messages, errors and channel options of the gRPC service `tipserve.v1.EncoderService`."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, get_args

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped]  # no py.typed
    BadRequest,
    ErrorInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from numpy.typing import NDArray

from tipserve_client.connection import Target
from tipserve_client.errors import (
    BY_CODE,
    BY_REASON,
    InternalError,
    InvalidRequest,
    RequestTooLarge,
    TipserveError,
    Unavailable,
    item_error,
)
from tipserve_client.generated import (
    embed_pb2,
    encoder_service_pb2,
    model_pb2,
    segment_pb2,
    stream_pb2,
    tensor_pb2,
    text_pb2,
)
from tipserve_client.images import ImageInput, encode_image
from tipserve_client.requests import MAPS, Method, PendingImage, Request
from tipserve_client.results import (
    EMBEDDINGS,
    LIMITS,
    ClassArea,
    ClassScore,
    Instance,
    Int8Vectors,
    Item,
    ModelInfo,
    Segmentation,
    partial_items,
    read_fields,
)

_SERVICE: Any = encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"]
# The RPC of a method, as the service names it: `EmbedImages`.
RPCS: Final[Mapping[Method, str]] = {
    method: "".join(map(str.capitalize, method.split("_"))) for method in get_args(Method)
}
# Fields with another name than in the client and in REST.
FIELD_NAMES: Final = {"dtype": "vector_type"}
# Fields of an example's region, which REST lists.
REGIONS: Final = {"point": ("x", "y"), "box": ("left", "top", "width", "height")}
# The list of a response with an entry for each image; all other responses have `maps`.
ROWS: Final[Mapping[Method, str]] = {
    "embed_images": "embeddings",
    "segment_images": "segmentations",
    "classify_images": "classifications",
}
DTYPES: Final = {
    tensor_pb2.DATA_TYPE_FLOAT32: "<f4",
    tensor_pb2.DATA_TYPE_UINT16: "<u2",
    tensor_pb2.DATA_TYPE_FLOAT16: "<f2",
    tensor_pb2.DATA_TYPE_INT8: "i1",
}
DETAILS: Final = (ErrorInfo, BadRequest, RetryInfo)
RESOURCE_EXHAUSTED: Final = 8
# Error codes for statuses that gRPC itself raises, without details. HTTP uses the same codes.
CORE_REASONS: Final = {4: "deadline_exceeded", 8: "request_too_large", 14: "unreachable"}

# A connection that breaks silently, as when a machine fails, is detected within twice this time,
# before the default deadline. The service allows pings twice as often.
PING_MS: Final = 20_000
CHANNEL_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Each client has its own connection, and retries by itself.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    # If a name has several addresses, requests are distributed over all of them. The name is
    # resolved again when one goes away, without a delay, to find its replacement.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", PING_MS),
    # Without this option the core waits a minute for a ping's answer, despite the line above.
    ("grpc.http2.ping_timeout_ms", PING_MS),
    ("grpc.http2.max_pings_without_data", 0),
)
# grpc.aio reports this with the code INTERNAL if it could not send because the server had ended
# the RPC. It loses the server's own status, which another attempt gets.
LOST_STATUS: Final = "Internal error from Core"
# gRPC's words if a stream was reset: a proxy does so when the server behind it has died.
RESET: Final = "RST_STREAM"


def channel_credentials(target: Target) -> grpc.ChannelCredentials:
    """Credentials from the files of `target.tls`."""
    ca, cert, key = (
        None if path is None else Path(path).read_bytes()
        for path in (target.tls.ca, target.tls.cert, target.tls.key)
    )
    return grpc.ssl_channel_credentials(ca, key, cert)


def request_id(metadata: Any) -> str | None:
    """Id of a request in the server's log, from the metadata of the RPC."""
    found: str | None = dict(metadata or ()).get("x-request-id")
    return found


def write_request(request: Request) -> Any:
    """The message of a request.

    Raises:
        InvalidRequest: A word is unknown: the protocol has numbers for them.
    """
    kind: Any = GetMessageClass(_SERVICE.methods_by_name[RPCS[request.method]].input_type)
    message = kind(**dict(_fields(kind.DESCRIPTOR, request.fields)))
    if request.method == "embed_texts":
        message.texts.extend(request.texts)
    for image in request.images:
        message.images.add(encoded=image)
    return message


def _fields(kind: Any, fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields of a message of a kind, for its constructor."""
    for name, value in fields.items():
        field = kind.fields_by_name[FIELD_NAMES.get(name, name)]
        if name == "outputs":
            words = enumerate(value)
            yield name, [_word(field.enum_type, one, f"outputs[{i}]") for i, one in words]
        elif field.enum_type is not None:
            yield field.name, _word(field.enum_type, value, name)
        elif name == "templates":
            yield name, _templates(value)
        elif (name, value) == ("include_scores", "all"):
            yield "include_all_scores", True
        elif name in {"classes", "background_classes"}:
            yield name, [dict(_fields(field.message_type, one)) for one in value]
        elif name == "examples":
            yield name, [_example(one) for one in value]
        else:
            yield name, value


def _word(enum: Any, word: str, param: str) -> str:
    """The protocol's name for a word, such as `FIT_ASPECT` for `aspect`."""
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    names = {one.name.removeprefix(prefix).lower(): one.name for one in enum.values[1:]}
    if word not in names:
        *others, last = map(repr, names)
        raise InvalidRequest(
            f"{param}: Input should be {', '.join(others)} or {last}, not {word!r}.",
            code="unknown_output" if param.startswith("outputs") else "invalid_field",
            param=param,
        )
    return str(names[word])


def _templates(value: str | list[str]) -> dict[str, Any]:
    if isinstance(value, str):
        return {"set": _word(text_pb2.TemplateSet.DESCRIPTOR, value, "templates")}
    return {"custom": {"templates": value}}


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"image": example["image"]}
    for name, keys in REGIONS.items():
        if name in example:
            found[name] = dict(zip(keys, example[name], strict=True))
    if "mask" in example:
        height, width = example["mask"]["size"]
        found["mask"] = {"height": height, "width": width, "counts": example["mask"]["counts"]}
    return found


def read_response(request: Request, response: Any, request_id: str | None = None) -> Any:
    """The answer to a request: models, its values, or the items of a partial one."""
    if request.method == "list_models":
        return [_model(one) for one in response.models]
    if request.method == "embed_texts" and not request.is_partial:
        return vectors(response.embeddings)
    errors = {
        error.index: item_error(
            error.message, error.reason, param=error.field or None, request_id=request_id
        )
        for error in response.errors
    }
    errors.update(request.errors)
    values = {
        index: _value(request, row)
        for index, row in enumerate(_rows(request.method, response))
        if index not in errors
    }
    return partial_items(values, errors) if request.is_partial else list(values.values())


def _model(model: model_pb2.Model) -> ModelInfo:
    """A served model."""
    outputs = (embed_pb2.ImageOutput.Name(number) for number in model.outputs)
    names = tuple(name.removeprefix("IMAGE_OUTPUT_").lower() for name in outputs)
    limits = {name: getattr(model.limits, field) for name, field in LIMITS.items()}
    return read_fields(ModelInfo, model, outputs=names, limits=limits)


def read_error(code: int, message: str, metadata: Mapping[str, Any]) -> TipserveError:
    """The error of an RPC, from its status."""
    info, bad, retry = (kind() for kind in DETAILS)
    with suppress(DecodeError):  # another server's
        for detail in Status.FromString(metadata.get("grpc-status-details-bin", b"")).details:
            any(detail.Unpack(one) for one in (info, bad, retry))
    retry_after_s = None
    if retry.HasField("retry_delay"):
        retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    pushback = str(metadata.get("grpc-retry-pushback-ms", ""))
    if pushback.isdecimal():
        retry_after_s = int(pushback) / 1000
    kind = BY_REASON.get(info.reason) or BY_CODE.get(code, InternalError)
    if code == RESOURCE_EXHAUSTED and retry_after_s is None:
        kind = RequestTooLarge  # gRPC itself refuses a message that is too large
    return kind(
        message,
        code=info.reason or CORE_REASONS.get(code, f"grpc_{code}"),
        param=next((one.field for one in bad.field_violations), None),
        request_id=metadata.get("x-request-id"),
        retry_after_s=retry_after_s,
    )


def read_stream_error(error: stream_pb2.StreamError) -> TipserveError:
    """The error of one request in a stream."""
    kind = BY_REASON.get(error.reason) or BY_CODE.get(error.code, InternalError)
    delay = error.retry_delay
    return kind(
        error.message,
        code=error.reason,
        param=error.field or None,
        request_id=error.request_id or None,
        retry_after_s=delay.ToNanoseconds() / 1e9 if error.HasField("retry_delay") else None,
    )


def rpc_error(error: Any) -> TipserveError:
    """The client's own error for an RpcError."""
    details = error.details() or ""
    if details == LOST_STATUS:
        return Unavailable("The stream broke while a request was sent.", code="stream_broken")
    if RESET in details:
        return Unavailable("The stream broke before the answer arrived.", code="stream_broken")
    metadata = {**dict(error.initial_metadata() or ()), **dict(error.trailing_metadata() or ())}
    return read_error(error.code().value[0], details, metadata)


class StreamWire:
    """Writes the requests of a stream, one for each image, and reads the responses."""

    def __init__(self, template: Request, timeout_s: float) -> None:
        self._template = template
        self._timeout = Duration()
        self._timeout.FromNanoseconds(int(1e9 * timeout_s))

    def write(self, index: int, image: ImageInput) -> PendingImage:
        """The request for an image, or the reason why it cannot be sent."""
        message = stream_pb2.StreamRequest(id=str(index), timeout=self._timeout)
        asked = getattr(message, self._template.method)
        try:
            asked.CopyFrom(write_request(self._template))
            asked.images.add(encoded=encode_image(image))
        except TipserveError as error:
            return PendingImage(index, error=error)
        return PendingImage(index, message)

    def read(self, pending: PendingImage, response: stream_pb2.StreamResponse) -> Item[Any]:
        """The item of the first image without an answer.

        Raises:
            TipserveError: The request is to be retried, or the response belongs to another image.
        """
        if response.id != str(pending.index):
            raise Unavailable(
                f"The stream answered request {response.id!r} instead of {pending.index}.",
                code="out_of_order",
            )
        if response.HasField("error"):
            error = read_stream_error(response.error)
            if error.is_retryable:
                raise error
            return Item(index=pending.index, error=error)
        (value,) = read_response(self._template, getattr(response, self._template.method))
        return Item(index=pending.index, value=value)


def array(tensor: tensor_pb2.Tensor) -> NDArray[Any]:
    """A tensor as a read-only array."""
    return np.frombuffer(tensor.data, DTYPES[tensor.data_type]).reshape(tuple(tensor.shape))


def vectors(tensor: tensor_pb2.Tensor) -> Any:
    """A tensor of embeddings: an array, or with int8 its values and scales."""
    values = array(tensor)
    if values.dtype != np.int8:
        return values
    scales = np.array(tensor.row_scales, np.float32).reshape(values.shape[:-1])
    return Int8Vectors(values=values, scales=scales)


def _rows(method: Method, response: Any) -> Any:
    """The entry of each image or text; it is empty where there is an error."""
    if method != "embed_texts":
        return getattr(response, ROWS.get(method, "maps"))
    texts = vectors(response.embeddings)
    if not isinstance(texts, Int8Vectors):
        return texts
    rows = zip(texts.values, texts.scales, strict=True)
    return [Int8Vectors(values=row, scales=np.asarray(scale)) for row, scale in rows]


def _value(request: Request, row: Any) -> Any:
    if request.method == "embed_images":
        kind = EMBEDDINGS[request.fields.get("dtype", "float32")]
        return kind(**{field.name: vectors(tensor) for field, tensor in row.ListFields()})
    if request.method == "embed_texts":
        return row
    if request.method == "segment_images":
        return _segmentation(row)
    if request.method == "classify_images":
        return [read_fields(ClassScore, one) for one in row.classes]
    return array(getattr(row, MAPS[request.method]))


def _segmentation(item: segment_pb2.Segmentation) -> Segmentation:
    names = ("labels", "scores", "cosines")
    arrays = {n: array(getattr(item, n)) if item.HasField(n) else None for n in names}
    classes = tuple(
        read_fields(
            ClassArea, one, confidence=one.confidence if one.HasField("confidence") else None
        )
        for one in item.classes
    )
    instances = tuple(
        read_fields(
            Instance,
            one,
            name=item.classes[one.label - 1].name,
            box=tuple(int(getattr(one.box, side)) for side in REGIONS["box"]),
            size=(one.mask.height, one.mask.width),
            counts=one.mask.counts,
        )
        for one in item.instances
    )
    return read_fields(Segmentation, item, classes=classes, instances=instances, **arrays)
