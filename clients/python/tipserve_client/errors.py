"""What can go wrong with a request, the same over both protocols.

TipserveError
+-- InvalidRequest       the caller's fault: a field, an image or a text cannot be used
+-- RequestTooLarge      more than the server ever takes at once; split it
+-- Unauthenticated      no API key, or an unknown one
+-- NotFound             no model of that name is served
+-- NotSupported         the model is served, but it cannot do that
+-- Overloaded           no room just now; tried again for as long as the deadline allows
+-- Unavailable          starting, draining, or not to be reached; tried again too
+-- DeadlineExceeded     the answer did not come in time
+-- InternalError        the server's fault; its log has more under the request id
"""

from collections.abc import Mapping
from typing import Final


class TipserveError(Exception):
    """An answer that is none.

    Attributes:
        message: One sentence that says what to change.
        code: Short stable name of the cause, such as `invalid_image`.
        param: The field at fault with the item's index, such as `images[3]`; None where none is.
        request_id: Under which the server's log has it, where the server was reached.
        retry_after_s: Seconds after which the server says that a later try may succeed.
    """

    can_be_tried_again = False
    # Whether it is no single image's: all others of a stream would fare the same.
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
        """Which image or text is at fault, from 0; None where it is not one of them."""
        head, _, rest = (self.param or "").partition("[")
        number = rest.partition("]")[0]
        return int(number) if head in {"images", "texts"} and number.isdecimal() else None


class InvalidRequest(TipserveError):
    """A field, an image or a text cannot be used."""


class RequestTooLarge(TipserveError):
    """The request is larger than the server ever takes."""


class Unauthenticated(TipserveError):
    """The server wants an API key, and this is none that it knows."""

    ends_stream = True


class NotFound(TipserveError):
    """No model of that name is served."""


class NotSupported(TipserveError):
    """The model cannot do what is asked."""


class Overloaded(TipserveError):
    """The server has no room just now."""

    can_be_tried_again = True
    ends_stream = True


class Unavailable(TipserveError):
    """The server is starting, draining, or not to be reached."""

    can_be_tried_again = True
    ends_stream = True


class DeadlineExceeded(TipserveError):
    """The answer did not come in time."""


class InternalError(TipserveError):
    """Something of the server's broke."""


BY_STATUS: Final[Mapping[int, type[TipserveError]]] = {
    400: InvalidRequest,
    401: Unauthenticated,
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
# By the numbers of gRPC's status codes.
BY_CODE: Final[Mapping[int, type[TipserveError]]] = {
    3: InvalidRequest,
    4: DeadlineExceeded,
    5: NotFound,
    8: Overloaded,
    12: NotSupported,
    14: Unavailable,
    16: Unauthenticated,
}
# These codes tell more than the status that they come with.
BY_REASON: Final[Mapping[str, type[TipserveError]]] = {
    "request_too_large": RequestTooLarge,
    "too_many_items": RequestTooLarge,
    "idle_stream": Unavailable,
}


def item_error(
    message: str, code: str, *, param: str | None, request_id: str | None
) -> TipserveError:
    """What is wrong with one image or text, where the others have their answers."""
    kind = BY_REASON.get(code, InvalidRequest)
    return kind(message, code=code, param=param, request_id=request_id)
