"""The one table from error kinds to HTTP, and the body of an error in either dialect.

Below `/v2` the error is its message, as the Open Inference Protocol has it; elsewhere it is an
object, as OpenAI has it. Both hold the same.
"""

import logging
import math
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from service.call import current_call
from service.errors import ErrorKind, InvalidRequest, ServiceError, internal_error

STATUS: dict[ErrorKind, int] = {
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.INVALID: 422,
    ErrorKind.UNSUPPORTED_MEDIA: 415,
    ErrorKind.NOT_ACCEPTABLE: 406,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.TOO_SLOW: 408,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.NOT_SUPPORTED: 501,
    ErrorKind.OVERLOADED: 429,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.DEADLINE: 504,
    ErrorKind.INTERNAL: 500,
}
# What nobody reads: the caller has closed the connection.
CLIENT_LEFT = 499

logger = logging.getLogger(__name__)


class ClientLeft(Exception):
    """The caller closed the connection before the answer."""


def error_response(error: ServiceError, path: str) -> Response:
    """An error as the caller of this path sees it."""
    call = current_call.get()
    if error.kind is ErrorKind.INTERNAL:
        error = internal_error(call.request_id)
    call.error = error.code
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.kind is ErrorKind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = 'Bearer realm="tipserve"'
    if error.kind is ErrorKind.TOO_SLOW:
        headers["Connection"] = "close"
    body = _body(path, error.message, error.kind, code=error.code, param=error.param)
    return JSONResponse(body, STATUS[error.kind], headers)


async def on_service_error(request: Request, error: Exception) -> Response:
    """Answer an error that we raised ourselves."""
    assert isinstance(error, ServiceError)
    if error.kind is ErrorKind.INTERNAL:
        logger.error("internal error", exc_info=error)
    return error_response(error, request.url.path)


async def on_unexpected(request: Request, error: Exception) -> Response:
    """Answer anything else: an id for the caller, everything else for the log."""
    logger.error("unexpected error", exc_info=error)
    return error_response(internal_error(current_call.get().request_id), request.url.path)


async def on_client_left(request: Request, error: Exception) -> Response:
    """Nobody is there to read it; the status is for log and metrics."""
    current_call.get().error = "client_left"
    return Response(status_code=CLIENT_LEFT)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer the framework's own errors, an unknown route or method, in the one body."""
    headers = getattr(error, "headers", None)
    if getattr(error, "status_code", 404) == 405:
        message = f"{request.method} is not a method of {request.url.path}."
        code, kind, status = "method_not_allowed", ErrorKind.INVALID, 405
    else:
        message = f"There is no {request.url.path}; see /docs."
        code, kind, status = "route_not_found", ErrorKind.NOT_FOUND, 404
    current_call.get().error = code
    return JSONResponse(_body(request.url.path, message, kind, code=code), status, headers)


def error_detail(error: ServiceError) -> dict[str, Any]:
    """An error as it stands in a body: message, type, code and param."""
    kind = error.kind.value
    return {"message": error.message, "type": kind, "code": error.code, "param": error.param}


def _body(
    path: str, message: str, kind: ErrorKind, *, code: str, param: str | None = None
) -> dict[str, Any]:
    detail = {"type": kind.value, "code": code, "param": param}
    if path == "/v2" or path.startswith("/v2/"):
        return {"error": message, **detail}
    return {"error": {"message": message, **detail}}


def invalid_fields(error: ValidationError) -> InvalidRequest:
    """The first of the fields that do not fit, by its path, such as `classes[1].prompts`."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = field_path(first["loc"]) or None
    code = {"extra_forbidden": "unknown_field", "json_invalid": "invalid_json"}.get(
        first["type"], "invalid_field"
    )
    said = first["msg"].removeprefix("Value error, ")
    text = "This field is not known." if code == "unknown_field" else f"{said}."
    return InvalidRequest(f"{param or 'body'}: {text}", code=code, param=param)


def field_path(location: tuple[Any, ...]) -> str:
    """A pydantic location as a path; the tags of unions, in angle brackets, are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part}" if path else part
    return path
