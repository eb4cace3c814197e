"""Errors of a request, the same over both protocols; each class says what helps."""

from collections.abc import Mapping
from typing import Final


class TipserveError(Exception):
    """A request failed.

    Attributes:
        message: One sentence that says what to change.
        code: Short stable name of the cause, such as `invalid_image`.
        param: The invalid field with the item's index, such as `images[3]`, if there is one.
        request_id: Id of the request in the server's log, if the server was reached.
        retry_after_s: Seconds to wait before a retry, if the server named a time.
    """

    is_retryable = False
    # Whether the other images of a stream would fail in the same way.
    ends_stream = False

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    @property
    def index(self) -> int | None:
        """Index of the invalid image or text, from 0, if the error concerns a single one."""
        head, _, rest = (self.param or "").partition("[")
        number = rest.partition("]")[0]
        return int(number) if head in {"images", "texts"} and number.isdecimal() else None


class InvalidRequest(TipserveError):
    """A field, an image or a text is invalid; change the request."""


class RequestTooLarge(TipserveError):
    """The request exceeds a limit of the server; split it."""


class Unauthenticated(TipserveError):
    """The API key is missing or unknown."""

    ends_stream = True


class NotFound(TipserveError):
    """No model with this name is served."""


class NotSupported(TipserveError):
    """The model is served, but it does not support the request."""


class Overloaded(TipserveError):
    """The server has no capacity now; retried until the deadline."""

    is_retryable = True
    ends_stream = True


class Unavailable(TipserveError):
    """The server is starting, draining or unreachable; retried as well."""

    is_retryable = True
    ends_stream = True


class DeadlineExceeded(TipserveError):
    """The answer did not arrive in time."""


class InternalError(TipserveError):
    """The server failed; its log has details under the request id."""


BY_STATUS: Final[Mapping[int, type[TipserveError]]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: InvalidRequest,
    404: NotFound,
    406: InvalidRequest,
    408: DeadlineExceeded,
    413: RequestTooLarge,
    415: InvalidRequest,
    422: InvalidRequest,
    429: Overloaded,
    501: NotSupported,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
# By gRPC status code.
BY_CODE: Final[Mapping[int, type[TipserveError]]] = {
    3: InvalidRequest,
    4: DeadlineExceeded,
    5: NotFound,
    7: InvalidRequest,
    8: Overloaded,
    12: NotSupported,
    14: Unavailable,
    16: Unauthenticated,
}
# These codes are more specific than the status that they arrive with.
BY_REASON: Final[Mapping[str, type[TipserveError]]] = {
    "request_too_large": RequestTooLarge,
    "too_many_items": RequestTooLarge,
    "idle_stream": Unavailable,
}


def item_error(
    message: str, code: str, *, param: str | None, request_id: str | None
) -> TipserveError:
    """The error of a single image or text in a partial answer."""
    kind = BY_REASON.get(code, InvalidRequest)
    return kind(message, code=code, param=param, request_id=request_id)
