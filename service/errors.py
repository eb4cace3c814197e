"""The errors of requests, independent of the transport.

Each class has one kind; each transport maps classes to its own codes in one table (rest/errors.py,
grpc/errors.py). Messages are for the caller: they say what to change and never contain the text of
another exception.
"""

from typing import ClassVar, Final

# A message may quote the caller. gRPC writes it three times into trailing metadata, with up to 17
# bytes for 3 bytes of UTF-8. Clients accept 8 KiB and report RESOURCE_EXHAUSTED beyond that.
MAX_MESSAGE_BYTES: Final = 1000
# A device that failed recovers in this time, or its process is restarted.
DEVICE_RETRY_S: Final = 5.0


class ServiceError(Exception):
    """An error that is sent to the caller.

    Attributes:
        kind: Type of the error in the bodies of REST.
        message: For the developer of the client; the middle of a long message is cut out.
        code: Short, stable name of the cause.
        param: The request field with the index of the item, such as `images[3]`.
        retry_after_s: Seconds after which a retry may succeed.
    """

    kind: ClassVar[str]
    default_code: ClassVar[str]

    def __init_subclass__(cls, *, kind: str, code: str) -> None:
        """Give a class of errors its kind, and the code of those that have no other."""
        cls.kind, cls.default_code = kind, code

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


class Unauthenticated(ServiceError, kind="authentication_error", code="invalid_api_key"):
    """The API key is missing or unknown; raised before the body is read."""


class Forbidden(ServiceError, kind="permission_error", code="cross_origin"):
    """REST only: a web page of another origin, or a host that is not allowed."""


class InvalidRequest(ServiceError, kind="invalid_request_error", code="invalid_field"):
    """A field, an image or a text of the request is invalid."""


class UnsupportedMedia(ServiceError, kind="unsupported_media_type", code="unsupported_media_type"):
    """REST only: the media type of the body is not supported."""


class NotAcceptable(ServiceError, kind="not_acceptable", code="not_acceptable"):
    """REST only: the caller accepts no media type that the response can have."""


class RequestTooLarge(ServiceError, kind="request_too_large", code="request_too_large"):
    """Too many bytes or items, or more work than the whole queue holds."""


class ModelNotFound(ServiceError, kind="not_found", code="model_not_found"):
    """No model of that name is served."""


class NotSupported(ServiceError, kind="not_supported", code="not_supported"):
    """The model is served, but it lacks the requested capability."""


class Overloaded(ServiceError, kind="overloaded", code="queue_full"):
    """The queue has no room for the whole request; retry later."""


class Unavailable(ServiceError, kind="unavailable", code="unavailable"):
    """The server starts or drains, or the device has failed; retry later."""


class DeadlineExceeded(ServiceError, kind="deadline_exceeded", code="deadline_exceeded"):
    """The deadline has passed, or cannot be met."""


class InternalError(ServiceError, kind="internal_error", code="internal"):
    """A bug; the log has the details under the request id."""


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
