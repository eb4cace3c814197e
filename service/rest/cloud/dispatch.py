"""Which route a request to the one route of a cloud means, and that route asked in its place."""

from collections.abc import Mapping
from functools import partial
from typing import Final

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.rest.cloud.inner import inner_request
from service.rest.cloud.predict import INSTANCES, predict
from service.rest.connection import in_time
from service.rest.image_input import check_json_size
from service.rest.negotiation import JSON

# SageMaker passes on this header and no other of the caller's own.
ATTRIBUTES: Final = "X-Amzn-SageMaker-Custom-Attributes"
DEFAULT_ROUTE: Final = "/v1/images:embed"
# The first of these fields that a JSON body has says what it is.
BY_FIELD: Final = {
    "input": "/v1/embeddings",
    "texts": "/v1/texts:embed",
    "classes": "/v1/images:segment",
}

Targets = Mapping[str, APIRoute]


async def invoke(request: Request, plane: DataPlane, targets: Targets) -> Response:
    """Answer as the route would that the request means.

    Args:
        request: Of any body that a route of `targets` reads, or with `instances`.
        plane: In whose pool the body is looked at.
        targets: What may be asked, by path.

    Raises:
        InvalidRequest: The header names no route, or as the route raises it.
        ServiceError: As the route raises it.
    """
    path, query = _named(request.headers.get(ATTRIBUTES), targets)
    query = query or request.url.query
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != JSON:
        return await _ask(targets[path or DEFAULT_ROUTE], inner_request(request, query=query))
    raw = await request.body()
    fields = await in_time(request, plane.offload(partial(_fields_of, raw)))
    if path is None and INSTANCES in fields:
        ask = {name: partial(_ask, route) for name, route in targets.items()}
        return await predict(request, raw, plane, ask)
    meant = path or next((p for name, p in BY_FIELD.items() if name in fields), DEFAULT_ROUTE)
    return await _ask(targets[meant], inner_request(request, raw, query=query))


async def _ask(route: APIRoute, request: Request) -> Response:
    response: Response = await route.endpoint(request)
    return response


def _named(attributes: str | None, targets: Targets) -> tuple[str | None, str]:
    """Path and query that the header names; what does not begin with `/` is the caller's own."""
    if attributes is None or not attributes.startswith("/"):
        return None, ""
    path, _, query = attributes.partition("?")
    if path not in targets:
        raise InvalidRequest(
            f"{ATTRIBUTES} names no route that can be asked here; those are "
            f"{', '.join(sorted(targets))}.",
            code="unknown_route",
            param=ATTRIBUTES,
        )
    return path, query


def _fields_of(raw: bytes) -> frozenset[str]:
    """Names of a JSON object's fields; none of anything else, which the route refuses."""
    check_json_size(raw)
    try:
        document = orjson.loads(raw)
    except ValueError:
        return frozenset()
    return frozenset(document) if isinstance(document, dict) else frozenset()
