"""SageMaker's and Vertex AI's container contracts: one route that stands for others.

`/invocations` and the path that Vertex AI chooses take the body of any route. A header or the
body's fields say which one is meant, and it is read, answered and written as there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.messages import RequestLimits
from service.rest.errors import OPENAI_PATH, renaming_params
from service.rest.inputs import Sent, check_json_size, media_type, parse_json
from service.rest.middleware import HEALTH_PATHS
from service.rest.openai import embeddings
from service.rest.openapi import BINARY, CALL_HEADERS, ERRORS, NO_HEAD, ONE_PIXEL
from service.rest.pages import ICON, PAGES
from service.rest.requests import DialectSchema
from service.rest.response_schemas import Ready
from service.rest.responses import JSON, PiecedResponse
from service.rest.routes import NATIVE, answer_native
from service.rest.token_ids import TokenVocabulary

PING: Final = "/ping"
INVOCATIONS: Final = "/invocations"
# Health checks that exist anyway; a setting may name one of them.
PROBES: Final = HEALTH_PATHS | {PING}
# Paths that no router lists.
OWN_PATHS: Final = PROBES | set(PAGES) | {INVOCATIONS, ICON, "/openapi.json"}
# The only header of the client that SageMaker passes on.
ATTRIBUTES: Final = "X-Amzn-SageMaker-Custom-Attributes"
EMBED: Final = "/v1/images:embed"
SEGMENT: Final = "/v1/images:segment"
EMBED_TEXTS: Final = "/v1/texts:embed"
TARGETS: Final = sorted({*NATIVE, OPENAI_PATH})
# The first of these fields in a JSON body decides the route.
ROUTE_OF_FIELD: Final = {"input": OPENAI_PATH, "texts": EMBED_TEXTS, "classes": SEGMENT}
INSTANCES: Final = "instances"
EXAMPLE: Final = {
    "instances": ["a dog", {"b64": ONE_PIXEL.partition(",")[2]}],
    "parameters": {"dimensions": 2},
}


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

    instances: Annotated[list[Any], Field(fail_fast=True)]
    parameters: dict[str, Any] | None = None


INVOKE: Final[dict[str, Any]] = {
    "responses": {
        200: {
            "description": "The answer of that route; for `instances`, `predictions` with the "
            "entries of that route's `data`.",
            "content": {JSON: {"schema": {"type": "object"}}},
        }
    }
    | ERRORS
    | NO_HEAD,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": f"The body of any route that takes texts or images. Without the header "
            f"{ATTRIBUTES}, `input` in a JSON body means {OPENAI_PATH}, `texts` {EMBED_TEXTS}, "
            f"`classes` {SEGMENT}, and all else {EMBED}. `instances` is Vertex AI's request: items "
            f'as in `input` of {OPENAI_PATH}, images also as `{{"b64": ...}}`, and `parameters`: '
            "further fields of the route's body, and its path as `route`.",
            "content": {
                JSON: {"schema": {"type": "object"}, "example": EXAMPLE},
                "image/*": {"schema": BINARY},
            },
        },
        "parameters": [
            {
                "name": ATTRIBUTES,
                "in": "header",
                "required": False,
                "description": f"Path of the route, such as `{SEGMENT}?classes=dog`.",
                "schema": {"type": "string"},
            },
            *CALL_HEADERS,
        ],
    },
}


def build_cloud_router(
    plane: DataPlane,
    vocabulary: TokenVocabulary | None,
    paths: CloudRoutes,
    others: Sequence[APIRouter],
) -> APIRouter:
    """Health checks, and routes that take the body of any other.

    Args:
        plane: Answers the requests.
        vocabulary: Decodes token ids; None refuses them.
        paths: Paths that the platform chose.
        others: Routers whose paths are taken.

    Raises:
        ValueError: A path that the platform chose is another route's.
    """
    router = APIRouter(tags=["clouds"])
    health = [PING] if paths.health in {None, *PROBES} else [PING, str(paths.health)]
    predict = [INVOCATIONS]
    if paths.predict not in {None, INVOCATIONS}:
        predict.append(str(paths.predict))
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
        plane.check_open(current_call.get().caller)
        return await invoke(Sent.of(request), plane, vocabulary)

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


async def invoke(sent: Sent, plane: DataPlane, vocabulary: TokenVocabulary | None) -> Response:
    """The answer of the route that a request means.

    Raises:
        InvalidRequest: The header names no route.
        ServiceError: As the route raises it.
    """
    path = None
    attributes = sent.request.headers.get(ATTRIBUTES) or ""
    if attributes.startswith("/"):  # else it is the client's own, for its logs
        path, _, query = attributes.partition("?")
        _check_target(path, ATTRIBUTES)
        if query:
            sent = replace(sent, query=parse_qsl(query, keep_blank_values=True))
    if media_type(sent.request) == JSON:
        raw = await sent.body()
        sent = replace(sent, raw=raw)
        fields = await plane.offload(partial(_fields_of, raw, plane.limits))
        if path is None and INSTANCES in fields:
            return await _predict(sent, raw, plane, vocabulary)
        path = path or next((p for f, p in ROUTE_OF_FIELD.items() if f in fields), None)
    return await _answer(path or EMBED, sent, plane, vocabulary)


def _check_target(path: object, param: str) -> None:
    if path not in TARGETS:
        raise InvalidRequest(
            f"{param} must name one of {', '.join(TARGETS)}.", code="unknown_route", param=param
        )


async def _answer(
    path: str, sent: Sent, plane: DataPlane, vocabulary: TokenVocabulary | None
) -> Response:
    """The answer of a route, as it would give it itself."""
    if path == OPENAI_PATH:
        return await embeddings(sent, plane, vocabulary)
    return await answer_native(NATIVE[path], sent, plane)


def _fields_of(raw: bytes, limits: RequestLimits) -> frozenset[str]:
    """Field names of a JSON object; empty for other bodies, which the route refuses."""
    check_json_size(raw, limits)
    try:
        document = orjson.loads(raw)
    except ValueError:
        return frozenset()
    return frozenset(document) if isinstance(document, dict) else frozenset()


async def _predict(
    sent: Sent, raw: bytes, plane: DataPlane, vocabulary: TokenVocabulary | None
) -> Response:
    """The answer of a route whose texts or images are Vertex AI's `instances`.

    Raises:
        InvalidRequest: A field is wrong, or `parameters.route` names no route.
        ServiceError: As the route raises it, with `instances[3]` for the item.
    """
    body = await plane.offload(partial(parse_json, raw, PredictBody, plane.limits))
    parameters = {k: v for k, v in (body.parameters or {}).items() if v is not None}
    path = parameters.pop("route", OPENAI_PATH)
    _check_target(path, "parameters.route")
    items = [_plain_item(instance) for instance in body.instances]
    field, key = {OPENAI_PATH: ("input", None), EMBED_TEXTS: ("texts", "text")}.get(
        str(path), ("images", "image")
    )
    if key is not None:
        items = [i[key] if isinstance(i, dict) and i.keys() == {key} else i for i in items]
    for name in sorted(parameters.keys() & {field, "image", "partial"}):
        raise InvalidRequest(
            f"parameters.{name} is not supported: give texts and images in instances; every "
            "instance gets one prediction.",
            param=f"parameters.{name}",
        )
    params = {f"{field}[{i}]": f"instances[{i}]" for i in range(len(items))}
    content = orjson.dumps({**parameters, field: items})
    inner = Sent(request=sent.request, accept=JSON, query=[], raw=content)
    with renaming_params(params | {field: INSTANCES}):
        answer = await _answer(str(path), inner, plane, vocabulary)
    return Response(await plane.offload(partial(_predictions, answer)), media_type=JSON)


def _predictions(answer: Response) -> bytes:
    content = answer.content() if isinstance(answer, PiecedResponse) else answer.body
    return orjson.dumps({"predictions": orjson.loads(content)["data"]})


def _plain_item(instance: Any) -> Any:
    """An item of `/v1/embeddings`; Vertex AI marks base64 of images in two ways."""
    match instance:
        case {"b64": data} if len(instance) == 1:
            return {"image": data}
        case {"image": {"b64": data} | {"bytesBase64Encoded": data}}:
            return {**instance, "image": data}
        case _:
            return instance
