"""SageMaker's and Vertex AI's container contracts."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field, JsonValue, ValidationError

from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.rest.connection import in_time
from service.rest.direct import Message
from service.rest.errors import invalid_fields
from service.rest.inputs import check_json_size, parse_json
from service.rest.openai import naming
from service.rest.openapi import BINARY, CALL_HEADERS, ERRORS, NO_HEAD, ONE_PIXEL, REF
from service.rest.requests import Schema
from service.rest.response_schemas import Ready
from service.rest.responses import JSON

# A request within a request: the same caller and limits, with another body, query or head.


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


# Vertex AI's way to ask: a list of instances and parameters for all, answered by predictions.

INSTANCES: Final = "instances"
EMBEDDINGS_ROUTE: Final = "/v1/embeddings"
TEXTS_ROUTE: Final = "/v1/texts:embed"
# Vertex AI marks base64 in either of these ways.
BASE64_KEYS: Final = ("b64", "bytesBase64Encoded")
Ask = Callable[[Request], Awaitable[Response]]


class PredictBody(Schema):
    """Texts or images, and what to do with all of them."""

    instances: Annotated[
        list[JsonValue],
        Field(
            description="Each as `/v1/embeddings` takes it in `input`; images also as "
            '`{"b64": ...}` or `{"image": {"bytesBase64Encoded": ...}}`.'
        ),
    ]
    parameters: Annotated[
        dict[str, JsonValue] | None,
        Field(
            description="Fields of a route's JSON body beside its texts or images, and in "
            "`route` which: `/v1/embeddings` unless it is given."
        ),
    ] = None


async def predict(
    request: Request, raw: bytes, plane: DataPlane, routes: Mapping[str, Ask]
) -> Response:
    """Ask a route with the instances as its texts or images.

    Raises:
        InvalidRequest: A field is wrong, or no such route can be asked.
        ServiceError: As the route raises it, with `instances[3]` for the item.
    """
    try:
        body = await in_time(request, plane.offload(partial(parse_json, raw, PredictBody)))
    except ValidationError as error:
        raise invalid_fields(error) from None
    parameters = dict(body.parameters or {})
    path = parameters.pop("route", EMBEDDINGS_ROUTE)
    if not isinstance(path, str) or path not in routes:
        raise InvalidRequest(
            f"parameters.route is one of {', '.join(sorted(routes))}.",
            code="unknown_route",
            param="parameters.route",
        )
    field, items = _items(path, body.instances)
    taken = parameters.keys() & {field, "image", "partial"}
    if taken or parameters.get("encoding_format") in {"bytes", "bytes_only"}:
        name = min(taken, default="encoding_format")
        raise InvalidRequest(
            f"parameters.{name} cannot be given here: items stand in instances, and each has a "
            "prediction, in JSON.",
            param=f"parameters.{name}",
        )
    places = {f"{field}[{i}]": f"instances[{i}]" for i in range(len(items))}
    inner = json_request(request, orjson.dumps({**parameters, field: items}))
    with naming(places | {field: INSTANCES}):
        answer = await routes[path](inner)
    content = await plane.offload(partial(_predictions, bytes(answer.body)))
    return Response(content, media_type=JSON)


def _items(path: str, instances: list[JsonValue]) -> tuple[str, list[JsonValue]]:
    """The route's field for its items, and them as it takes them."""
    plain = [_unwrap(instance) for instance in instances]
    if path == EMBEDDINGS_ROUTE:
        return "input", plain
    field, key = ("texts", "text") if path == TEXTS_ROUTE else ("images", "image")
    return field, [
        item[key] if isinstance(item, dict) and item.keys() == {key} else item for item in plain
    ]


def _unwrap(instance: JsonValue) -> JsonValue:
    """An image's base64 without what Vertex AI puts around it."""
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


# Which route a request to the one route of a cloud means, and that route asked in its place.

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


# What the routes for clouds tell about themselves in the OpenAPI document.

RULE: Final = (
    "The body of any route that takes texts or images. Which one: the path in the header "
    f"{ATTRIBUTES}, with its query where options stand there (`/v1/images:segment?classes=dog`). "
    "Without the header, a JSON body is looked at: `instances` is Vertex AI's form; "
    + "; ".join(f"`{field}` means {path}" for field, path in BY_FIELD.items())
    + f". Everything else, images as they are too, goes to {DEFAULT_ROUTE}."
)
INVOKE: Final[dict[str, Any]] = {
    "responses": {
        200: {
            "description": "As the route that was meant answers; for `instances`, an object with "
            "`predictions`: the entries of that route's `data`.",
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
                "description": "Path of the route that is meant.",
                "schema": {"type": "string"},
            },
            *CALL_HEADERS,
        ],
    },
}


# The routes that clouds ask: SageMaker's fixed ones, and those that Vertex AI names.

PING: Final = "/ping"
INVOCATIONS: Final = "/invocations"
# Routes that are health checks already; a setting may name one of them.
PROBES: Final = frozenset({PING, "/v2/health/live", "/v2/health/ready"})
# Paths that no router tells of.
OWN_PATHS: Final = PROBES | {INVOCATIONS, "/docs", "/openapi.json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudRoutes:
    """Paths that a platform chose; None where it chose none."""

    health: str | None = None
    predict: str | None = None

    @property
    def probes(self) -> frozenset[str]:
        """Paths of health checks, which need no key: a platform cannot send one."""
        return frozenset({PING} | ({self.health} if self.health else set()))


def build_cloud_router(
    plane: DataPlane, targets: Targets, paths: CloudRoutes, others: Sequence[APIRouter]
) -> APIRouter:
    """Health checks, and routes that take what any of the targets takes.

    Args:
        plane: What they ask.
        targets: Routes that read their own bodies, by path.
        paths: What the platform chose.
        others: Routers whose paths are taken.

    Raises:
        ValueError: A path that the platform chose is another route's.
    """
    router = APIRouter(tags=["clouds"])
    health = [PING] if paths.health in {None, *PROBES} else [PING, str(paths.health)]
    asked = (
        [INVOCATIONS] if paths.predict in {None, INVOCATIONS} else [INVOCATIONS, str(paths.predict)]
    )
    chosen = [*health[1:], *asked[1:]]
    for path in chosen:
        if path in OWN_PATHS or chosen.count(path) > 1 or _is_taken(path, others):
            raise ValueError(
                f"health_route or predict_route: {path} is another route; choose another path"
            )
    for path in health:
        _add_health(router, plane, path)
    for path in asked:
        _add_invocations(router, plane, targets, path)
    return router


def _add_health(router: APIRouter, plane: DataPlane, path: str) -> None:
    @router.get(path, responses=ERRORS)
    async def ping() -> Ready:
        """Whether requests are taken, as `/v2/health/ready`."""
        plane.check_ready()
        return Ready()


def _add_invocations(router: APIRouter, plane: DataPlane, targets: Targets, path: str) -> None:
    @router.post(path, **INVOKE)
    async def invocations(request: Request) -> Response:
        """Whatever another route answers, chosen by the body or by a header."""
        plane.check_open()
        return await invoke(request, plane, targets)


def _is_taken(path: str, others: Sequence[APIRouter]) -> bool:
    return any(
        isinstance(route, APIRoute) and route.path_regex.match(path) is not None
        for router in others
        for route in router.routes
    )
