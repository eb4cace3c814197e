"""The errors of requests, independent of the transport.

Each error has one kind; each transport maps kinds to its own codes in one table (rest/errors.py,
grpc/errors.py). Messages are for the caller: they say what to change and never contain the text of
another exception.

    ServiceError
    +-- Unauthenticated    before the body is read: no API key, or an unknown one
    +-- Forbidden          REST only: a web page of another origin, or a host that is not allowed
    +-- InvalidRequest     the caller's fault: a field, an image or a text
    +-- UnsupportedMedia   REST only: unknown media type of the body
    +-- NotAcceptable      REST only: no media type that the caller accepts
    +-- RequestTooLarge    too many bytes or items, or more work than the whole queue holds
    +-- ModelNotFound      no model of that name is served
    +-- NotSupported       the model is served, but it lacks the capability
    +-- Overloaded         the queue is full; retry later
    +-- Unavailable        the server starts or drains, or the device failed; retry later
    +-- DeadlineExceeded   the deadline passed, or cannot be met
    +-- InternalError      a bug; the caller gets a request id to look up in the log
"""

from enum import Enum
from typing import ClassVar, Final

# A message may quote the caller. gRPC writes it three times into trailing metadata, with up to 17
# bytes for 3 bytes of UTF-8. Clients accept 8 KiB and report RESOURCE_EXHAUSTED beyond that.
MAX_MESSAGE_BYTES: Final = 1000
# A device that failed recovers in this time, or its process is restarted.
DEVICE_RETRY_S: Final = 5.0


class ErrorKind(Enum):
    """The kinds that transports map to their codes."""

    UNAUTHENTICATED = "authentication_error"
    FORBIDDEN = "permission_error"
    INVALID = "invalid_request_error"
    UNSUPPORTED_MEDIA = "unsupported_media_type"
    NOT_ACCEPTABLE = "not_acceptable"
    TOO_LARGE = "request_too_large"
    NOT_FOUND = "not_found"
    NOT_SUPPORTED = "not_supported"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline_exceeded"
    INTERNAL = "internal_error"


class ServiceError(Exception):
    """An error that is sent to the caller.

    Attributes:
        message: For the developer of the client; the middle of a long message is cut out.
        code: Short, stable name of the cause.
        param: The request field with the index of the item, such as `images[3]`.
        retry_after_s: Seconds after which a retry may succeed.
    """

    kind: ClassVar[ErrorKind]
    default_code: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = without_middle(message)
        super().__init__(self.message)
        self.code = code or self.default_code
        self.param = param
        self.retry_after_s = retry_after_s


class Unauthenticated(ServiceError):
    """The API key is missing or unknown."""

    kind = ErrorKind.UNAUTHENTICATED
    default_code = "invalid_api_key"


class Forbidden(ServiceError):
    """A browser sends the request for a page of another origin, or to a host not allowed."""

    kind = ErrorKind.FORBIDDEN
    default_code = "cross_origin"


class InvalidRequest(ServiceError):
    """A field, an image or a text of the request is invalid."""

    kind = ErrorKind.INVALID
    default_code = "invalid_field"


class UnsupportedMedia(ServiceError):
    """The media type of the body is not supported."""

    kind = ErrorKind.UNSUPPORTED_MEDIA
    default_code = "unsupported_media_type"


class NotAcceptable(ServiceError):
    """The caller accepts no media type that the response can have."""

    kind = ErrorKind.NOT_ACCEPTABLE
    default_code = "not_acceptable"


class RequestTooLarge(ServiceError):
    """The request exceeds a limit of the server."""

    kind = ErrorKind.TOO_LARGE
    default_code = "request_too_large"


class ModelNotFound(ServiceError):
    """No model of that name is served."""

    kind = ErrorKind.NOT_FOUND
    default_code = "model_not_found"


class NotSupported(ServiceError):
    """The model is served, but it lacks the requested capability."""

    kind = ErrorKind.NOT_SUPPORTED
    default_code = "not_supported"


class Overloaded(ServiceError):
    """The queue has no room for the whole request."""

    kind = ErrorKind.OVERLOADED
    default_code = "queue_full"


class Unavailable(ServiceError):
    """The server starts or drains, or the device has failed."""

    kind = ErrorKind.UNAVAILABLE
    default_code = "unavailable"


class DeadlineExceeded(ServiceError):
    """The deadline has passed, or cannot be met."""

    kind = ErrorKind.DEADLINE
    default_code = "deadline_exceeded"


class InternalError(ServiceError):
    """A bug; the log has the details under the request id."""

    kind = ErrorKind.INTERNAL
    default_code = "internal"


def internal_error(request_id: str) -> InternalError:
    """The error for an unexpected exception: a request id to look up, and no details."""
    return InternalError(
        f"Internal error; the server log has the details under request id {request_id}."
    )


def device_unhealthy() -> Unavailable:
    """The error for requests while no lane is healthy."""
    return Unavailable(
        "The device does not answer; try again.", code="unhealthy", retry_after_s=DEVICE_RETRY_S
    )


def without_middle(message: str) -> str:
    """A message cut to `MAX_MESSAGE_BYTES`, half of its start and half of its end."""
    raw = message.encode("utf-8", "replace")
    if len(raw) <= MAX_MESSAGE_BYTES:
        return message
    half = MAX_MESSAGE_BYTES // 2
    begin, end = (part.decode("utf-8", "ignore") for part in (raw[:half], raw[-half:]))
    return f"{begin} ... {end}"
