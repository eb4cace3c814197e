"""SageMaker's and Vertex AI's container contracts: one route that stands for all others.

`/invocations` and the path that Vertex AI chooses take the body of any route. A header or the
body's fields say which route is meant, and that route is called with the same limits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field, JsonValue
from starlette.types import Message

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.messages import RequestLimits
from service.rest.connection import HEALTH_PATHS
from service.rest.inputs import check_json_size, in_pool, media_type, parse_json, read_body
from service.rest.openai import renaming_params
from service.rest.openapi import BINARY, CALL_HEADERS, ERRORS, NO_HEAD, ONE_PIXEL, REF
from service.rest.pages import ICON, PAGES
from service.rest.requests import DialectSchema
from service.rest.response_schemas import Ready
from service.rest.responses import JSON

PING: Final = "/ping"
INVOCATIONS: Final = "/invocations"
# Health checks that exist anyway; a setting may name one of them.
PROBES: Final = HEALTH_PATHS | {PING}
# Paths that no router lists.
OWN_PATHS: Final = PROBES | set(PAGES) | {INVOCATIONS, ICON, "/openapi.json"}
# The only header of the client that SageMaker passes on.
ATTRIBUTES: Final = "X-Amzn-SageMaker-Custom-Attributes"
DEFAULT_ROUTE: Final = "/v1/images:embed"
EMBEDDINGS_ROUTE: Final = "/v1/embeddings"
TEXTS_ROUTE: Final = "/v1/texts:embed"
# The first of these fields in a JSON body decides the route.
ROUTE_OF_FIELD: Final = {
    "input": EMBEDDINGS_ROUTE,
    "texts": TEXTS_ROUTE,
    "classes": "/v1/images:segment",
}
INSTANCES: Final = "instances"
# Vertex AI marks base64 in either of these ways.
BASE64_KEYS: Final = ("b64", "bytesBase64Encoded")
# Routes that can be meant, by path.
Targets = Mapping[str, APIRoute]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudRoutes:
    """Paths that a platform chose; None where it chose none."""

    health: str | None = None
    predict: str | None = None

    @property
    def probes(self) -> frozenset[str]:
        """Paths of health checks, which need no key: a platform cannot send one."""
        return frozenset({PING} | ({self.health} if self.health else set()))


class PredictBody(DialectSchema):
    """Vertex AI's request: texts or images, and parameters for all of them."""

    instances: Annotated[
        list[JsonValue],
        Field(
            fail_fast=True,
            description="Each as in `input` of `/v1/embeddings`; images also as "
            '`{"b64": ...}` or `{"image": {"bytesBase64Encoded": ...}}`.',
        ),
    ]
    parameters: Annotated[
        dict[str, JsonValue] | None,
        Field(
            description="Further fields of the route's JSON body; `route` is its path. Default: "
            "`/v1/embeddings`."
        ),
    ] = None


RULE: Final = (
    f"The body of any route that takes texts or images. The header {ATTRIBUTES} names the route by "
    "its path, optionally with a query (`/v1/images:segment?classes=dog`). Without the header, the "
    "fields of a JSON body decide: `instances` is Vertex AI's request; "
    + "; ".join(f"`{field}` means {path}" for field, path in ROUTE_OF_FIELD.items())
    + f". All other bodies, such as an encoded image, go to {DEFAULT_ROUTE}."
)
INVOKE: Final[dict[str, Any]] = {
    "responses": {
        200: {
            "description": "The answer of that route; for `instances`, an object with "
            "`predictions`, the entries of that route's `data`.",
            "content": {JSON: {"schema": {"type": "object"}}},
        }
    }
    | ERRORS
    | NO_HEAD,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": RULE,
            "content": {
                JSON: {
                    "schema": {
                        "anyOf": [
                            {"$ref": REF.format(model=PredictBody.__name__)},
                            {"type": "object"},
                        ]
                    },
                    "example": {
                        "instances": ["a dog", {"b64": ONE_PIXEL.partition(",")[2]}],
                        "parameters": {"dimensions": 2},
                    },
                },
                "image/*": {"schema": BINARY},
            },
        },
        "parameters": [
            {
                "name": ATTRIBUTES,
                "in": "header",
                "required": False,
                "description": "Path of the route to call, optionally with a query.",
                "schema": {"type": "string"},
            },
            *CALL_HEADERS,
        ],
    },
}


def build_cloud_router(
    plane: DataPlane, targets: Targets, paths: CloudRoutes, others: Sequence[APIRouter]
) -> APIRouter:
    """Health checks, and routes that take the body of any target.

    Args:
        plane: Checks the health, and parses bodies in its pool.
        targets: Routes that read their own bodies.
        paths: Paths that the platform chose.
        others: Routers whose paths are taken.

    Raises:
        ValueError: A path that the platform chose is another route's.
    """
    router = APIRouter(tags=["clouds"])
    health = [PING] if paths.health in {None, *PROBES} else [PING, str(paths.health)]
    predict = (
        [INVOCATIONS] if paths.predict in {None, INVOCATIONS} else [INVOCATIONS, str(paths.predict)]
    )
    chosen = [*health[1:], *predict[1:]]
    for path in chosen:
        if path in OWN_PATHS or chosen.count(path) > 1 or _is_taken(path, others):
            raise ValueError(
                f"health_route or predict_route: {path} is another route; choose another path"
            )

    async def ping() -> Ready:
        """Readiness, as `/v2/health/ready`."""
        plane.check_ready()
        return Ready()

    async def invocations(request: Request) -> Response:
        """The answer of another route, chosen by a header or by the body's fields."""
        plane.check_open(current_call.get().flow)
        return await invoke(request, plane, targets)

    # The names of a second path differ: they are names of methods in generated clients.
    for path, name in zip(health, ("ping", "chosen_health_route"), strict=False):
        router.get(path, name=name, responses=ERRORS)(ping)
    for path, name in zip(predict, ("invocations", "chosen_predict_route"), strict=False):
        router.post(path, name=name, **INVOKE)(invocations)
    return router


def _is_taken(path: str, others: Sequence[APIRouter]) -> bool:
    return any(
        isinstance(route, APIRoute) and route.path_regex.match(path) is not None
        for router in others
        for route in router.routes
    )


async def invoke(request: Request, plane: DataPlane, targets: Targets) -> Response:
    """The answer of the route that a request means.

    Args:
        request: With the body of any target, or with `instances`.
        plane: Parses the body in its pool.
        targets: The routes that may be meant.

    Raises:
        InvalidRequest: The header names no target, or as the route raises it.
        ServiceError: As the route raises it.
    """
    path, query = _named_route(request.headers.get(ATTRIBUTES), targets)
    query = query or request.url.query
    if media_type(request) != JSON:
        return await _call(targets[path or DEFAULT_ROUTE], inner_request(request, query=query))
    raw = await read_body(request)
    fields = await in_pool(plane, partial(_fields_of, raw, plane.limits))
    if path is None and INSTANCES in fields:
        return await predict(request, raw, plane, targets)
    meant = path or next((p for f, p in ROUTE_OF_FIELD.items() if f in fields), DEFAULT_ROUTE)
    return await _call(targets[meant], inner_request(request, raw, query=query))


async def _call(route: APIRoute, request: Request) -> Response:
    response: Response = await route.endpoint(request)
    return response


def _named_route(attributes: str | None, targets: Targets) -> tuple[str | None, str]:
    """Path and query that the header names.

    A value that does not begin with `/` is the client's own, for its logs.
    """
    if attributes is None or not attributes.startswith("/"):
        return None, ""
    path, _, query = attributes.partition("?")
    if path not in targets:
        raise InvalidRequest(
            f"{ATTRIBUTES} must name one of {', '.join(sorted(targets))}.",
            code="unknown_route",
            param=ATTRIBUTES,
        )
    return path, query


def _fields_of(raw: bytes, limits: RequestLimits) -> frozenset[str]:
    """Field names of a JSON object; empty for other bodies, which the route refuses."""
    check_json_size(raw, limits)
    try:
        document = orjson.loads(raw)
    except ValueError:
        return frozenset()
    return frozenset(document) if isinstance(document, dict) else frozenset()


def inner_request(request: Request, raw: bytes | None = None, *, query: str = "") -> Request:
    """The same request with another body and query.

    Args:
        request: The outer request.
        raw: The body; None where it has not been read.
        query: Without its question mark.
    """

    async def receive() -> Message:
        return {"type": "http.request", "body": raw, "more_body": False}

    scope = {**request.scope, "query_string": query.encode("ascii", "replace")}
    return Request(scope, request.receive if raw is None else receive)


async def predict(request: Request, raw: bytes, plane: DataPlane, targets: Targets) -> Response:
    """Call a route with Vertex AI's `instances` as its texts or images.

    Raises:
        InvalidRequest: A field is wrong, or `parameters.route` names no target.
        ServiceError: As the route raises it, with `instances[3]` for the item.
    """
    body = await in_pool(plane, partial(parse_json, raw, PredictBody, plane.limits))
    parameters = {k: v for k, v in (body.parameters or {}).items() if v is not None}
    path = parameters.pop("route", EMBEDDINGS_ROUTE)
    if not isinstance(path, str) or path not in targets:
        raise InvalidRequest(
            f"parameters.route must be one of {', '.join(sorted(targets))}.",
            code="unknown_route",
            param="parameters.route",
        )
    field, items = _items(path, body.instances)
    taken = parameters.keys() & {field, "image", "partial"}
    if taken or parameters.get("encoding_format") in {"bytes", "bytes_only"}:
        name = min(taken, default="encoding_format")
        raise InvalidRequest(
            f"parameters.{name} is not supported: give texts and images in instances; every "
            "instance gets one prediction, in JSON.",
            param=f"parameters.{name}",
        )
    params = {f"{field}[{i}]": f"instances[{i}]" for i in range(len(items))}
    inner = inner_request(request, orjson.dumps({**parameters, field: items}))
    json_header = JSON.encode("ascii")
    inner.scope["headers"] = [(b"content-type", json_header), (b"accept", json_header)]
    with renaming_params(params | {field: INSTANCES}):
        answer = await _call(targets[path], inner)
    content = await plane.offload(partial(_predictions, bytes(answer.body)))
    return Response(content, media_type=JSON)


def _items(path: str, instances: list[JsonValue]) -> tuple[str, list[JsonValue]]:
    """The name of the route's field for its items, and the items in the route's form."""
    plain = [_unwrap(instance) for instance in instances]
    if path == EMBEDDINGS_ROUTE:
        return "input", plain
    field, key = ("texts", "text") if path == TEXTS_ROUTE else ("images", "image")
    return field, [
        item[key] if isinstance(item, dict) and item.keys() == {key} else item for item in plain
    ]


def _unwrap(instance: JsonValue) -> JsonValue:
    """An instance with its image's base64 as a plain string."""
    if not isinstance(instance, dict):
        return instance
    if len(instance) == 1 and "b64" in instance:
        return {"image": instance["b64"]}
    image = instance.get("image")
    if isinstance(image, dict) and len(image) == 1:
        (name,) = image
        if name in BASE64_KEYS:
            return {**instance, "image": image[name]}
    return instance


def _predictions(raw: bytes) -> bytes:
    return orjson.dumps({"predictions": orjson.loads(raw)["data"]})
