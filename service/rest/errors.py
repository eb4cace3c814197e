"""REST errors: the status of each error kind, and the JSON body.

Below `/v2`, `error` is the message, as in the Open Inference Protocol. Elsewhere it is an object,
as in OpenAI's API. Both bodies hold the same fields.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service import errors
from service.call import current_call
from service.errors import InvalidRequest, ServiceError, internal_error

STATUS: dict[type[ServiceError], int] = {
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.InvalidRequest: 422,
    errors.UnsupportedMedia: 415,
    errors.NotAcceptable: 406,
    errors.RequestTooLarge: 413,
    errors.ModelNotFound: 404,
    errors.NotSupported: 501,
    errors.Overloaded: 429,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
    errors.InternalError: 500,
}
# Its clients raise exceptions by status, and OpenAI answers every wrong request with 400.
OPENAI_PATH = "/v1/embeddings"
BAD_REQUEST = 400
# Status of a request whose client closed the connection; only logs and metrics show it.
CLIENT_LEFT = 499

logger = logging.getLogger(__name__)


class ClientLeft(Exception):
    """The client closed the connection before the answer was ready."""


async def on_error(request: Request, error: Exception) -> Response:
    """The response to an exception of a route."""
    call = current_call.get()
    if isinstance(error, ClientLeft):
        call.error = "client_left"
        return Response(status_code=CLIENT_LEFT)
    if isinstance(error, HTTPException):
        return _framework_error(request, error)
    if not isinstance(error, ServiceError):
        logger.error("unexpected error", exc_info=error)
        error = internal_error(call.request_id)
    elif isinstance(error, errors.InternalError):
        logger.error("internal error", exc_info=error)
    return error_response(error, request.url.path)


def error_response(error: ServiceError, path: str) -> Response:
    """The response to an error, in the form that clients of this path expect."""
    call = current_call.get()
    if isinstance(error, errors.InternalError):
        # The message may hold internals; the client gets an id to quote instead.
        error = internal_error(call.request_id)
    call.error = error.code
    status = STATUS[type(error)]
    if path == OPENAI_PATH and (
        isinstance(error, InvalidRequest) or error.code == "too_many_items"
    ):
        error = InvalidRequest(error.message, code=error.code, param=error.param)
        status = BAD_REQUEST
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="tipserve"'
    return JSONResponse(_body(path, error_detail(error)), status, headers)


def _framework_error(request: Request, error: HTTPException) -> Response:
    """The response to FastAPI's own errors: an unknown path or method."""
    path = request.url.path
    found: ServiceError = errors.ModelNotFound(
        f"Unknown path {path}; see /docs.", code="route_not_found"
    )
    if error.status_code == 405:
        message = f"{path} does not support {request.method}."
        found = InvalidRequest(message, code="method_not_allowed")
    current_call.get().error = found.code
    return JSONResponse(_body(path, error_detail(found)), error.status_code, error.headers)


def error_detail(error: ServiceError) -> dict[str, Any]:
    """An error as JSON."""
    return {"message": error.message, "type": error.kind, "code": error.code, "param": error.param}


@contextmanager
def renaming_params(params: Mapping[str, str]) -> Iterator[None]:
    """Make errors of the block name fields as the client does.

    Raises:
        ServiceError: As raised in the block, with `param` and message renamed.
    """
    try:
        yield
    except ServiceError as error:
        inner = error.param or ""
        item, dot, field = inner.partition(".")
        if item not in params:
            raise
        outer = params[item] + dot + field
        raise type(error)(
            error.message.replace(inner, outer),
            code=error.code,
            param=outer,
            retry_after_s=error.retry_after_s,
        ) from None


def _body(path: str, detail: dict[str, Any]) -> dict[str, Any]:
    if path == "/v2" or path.startswith("/v2/"):
        return {"error": detail.pop("message"), **detail}
    return {"error": detail}
