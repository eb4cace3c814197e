"""A request within a request: the same caller and limits, with another body, query or head."""

from fastapi import Request

from service.rest.direct import Message
from service.rest.negotiation import JSON


def inner_request(request: Request, raw: bytes | None = None, *, query: str = "") -> Request:
    """The same request with another body and query; its caller may still leave.

    Args:
        request: As it came.
        raw: Instead of a body that has been read; None where it has not.
        query: Without its question mark.
    """
    is_sent = raw is None

    async def receive() -> Message:
        nonlocal is_sent
        if is_sent:
            return await request.receive()
        is_sent = True
        return {"type": "http.request", "body": raw, "more_body": False}

    return Request({**request.scope, "query_string": query.encode("ascii", "replace")}, receive)


def json_request(request: Request, raw: bytes) -> Request:
    """The same caller, asking with this JSON for JSON."""
    headers = [(b"content-type", JSON.encode()), (b"accept", JSON.encode())]
    inner = inner_request(request, raw)
    inner.scope["headers"] = headers
    return inner
