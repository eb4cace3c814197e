"""What can go wrong with a request, free of any transport.

Each error has one kind; each transport turns kinds into its own codes in one table (rest/errors.py,
grpc/errors.py). Messages are for the caller: they say what to change and never repeat an
exception's text.

    ServiceError
    +-- Unauthenticated    before anything is read: no key, or one that is not ours
    +-- InvalidRequest     schemas, converters, admit, decode: the caller's fault
    +-- UnsupportedMedia   REST only: the body is of a type that no reader knows
    +-- NotAcceptable      REST only: the answer cannot be written as the caller accepts it
    +-- RequestTooLarge    gate: too many bytes or items, or more work than the whole queue holds
    +-- TooSlow            REST only: the body comes too slowly
    +-- ModelNotFound      admit
    +-- NotSupported       admit: the model is served, but it cannot do that
    +-- Overloaded         admit: the queue is full; come back
    +-- Unavailable        admit, batch: starting or draining; come back
    +-- DeadlineExceeded   admit, batch and on the way: nobody waits for the answer any more
    +-- InternalError      run: ours; the caller gets an id to look up
"""

from enum import Enum
from typing import ClassVar, Final

# A message may quote the caller. gRPC writes it three times into trailing metadata, in up to 17
# bytes for 3 of UTF-8, and clients take 8 KiB of that; what is longer they call RESOURCE_EXHAUSTED.
MAX_MESSAGE_BYTES: Final = 1000


class ErrorKind(Enum):
    """The kinds that transports translate."""

    UNAUTHENTICATED = "authentication_error"
    INVALID = "invalid_request_error"
    UNSUPPORTED_MEDIA = "unsupported_media_type"
    NOT_ACCEPTABLE = "not_acceptable"
    TOO_LARGE = "request_too_large"
    TOO_SLOW = "request_timeout"
    NOT_FOUND = "not_found"
    NOT_SUPPORTED = "not_supported"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline_exceeded"
    INTERNAL = "internal_error"


class ServiceError(Exception):
    """An error that a caller is told about.

    Attributes:
        message: One sentence for the developer who calls us; one that is too long lacks its middle.
        code: Short stable name of the cause.
        param: The field at fault with the item's index, such as `images[3]`.
        retry_after_s: Seconds after which a later try may succeed.
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
    """The caller gave no key, or one that is not known."""

    kind = ErrorKind.UNAUTHENTICATED
    default_code = "invalid_api_key"


class InvalidRequest(ServiceError):
    """A field, or an image or text of the request, cannot be used."""

    kind = ErrorKind.INVALID
    default_code = "invalid_field"


class UnsupportedMedia(ServiceError):
    """The body's media type is not one that is read."""

    kind = ErrorKind.UNSUPPORTED_MEDIA
    default_code = "unsupported_media_type"


class NotAcceptable(ServiceError):
    """The answer cannot be written in any media type that the caller accepts."""

    kind = ErrorKind.NOT_ACCEPTABLE
    default_code = "not_acceptable"


class RequestTooLarge(ServiceError):
    """The request is larger than this server ever takes."""

    kind = ErrorKind.TOO_LARGE
    default_code = "request_too_large"


class TooSlow(ServiceError):
    """The body comes too slowly."""

    kind = ErrorKind.TOO_SLOW
    default_code = "request_timeout"


class ModelNotFound(ServiceError):
    """No model of that name is served."""

    kind = ErrorKind.NOT_FOUND
    default_code = "model_not_found"


class NotSupported(ServiceError):
    """The model is served, but it cannot do what is asked of it."""

    kind = ErrorKind.NOT_SUPPORTED
    default_code = "not_supported"


class Overloaded(ServiceError):
    """The queue has no room for the whole request."""

    kind = ErrorKind.OVERLOADED
    default_code = "queue_full"


class Unavailable(ServiceError):
    """The server is starting or draining."""

    kind = ErrorKind.UNAVAILABLE
    default_code = "unavailable"


class DeadlineExceeded(ServiceError):
    """The caller's deadline has passed."""

    kind = ErrorKind.DEADLINE
    default_code = "deadline_exceeded"


class InternalError(ServiceError):
    """Something of ours broke; the log has the rest under the request id."""

    kind = ErrorKind.INTERNAL
    default_code = "internal"


def internal_error(request_id: str) -> InternalError:
    """The answer to anything unexpected: an id to look up, nothing else."""
    return InternalError(f"Internal error. The server's log has it under request id {request_id}.")


def without_middle(message: str) -> str:
    """A message, of which no more is left than `MAX_MESSAGE_BYTES` of its beginning and its end."""
    raw = message.encode("utf-8", "replace")
    if len(raw) <= MAX_MESSAGE_BYTES:
        return message
    half = MAX_MESSAGE_BYTES // 2
    begin, end = (part.decode("utf-8", "ignore") for part in (raw[:half], raw[-half:]))
    return f"{begin} ... {end}"
