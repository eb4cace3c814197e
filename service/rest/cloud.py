"""SageMaker's and Vertex AI's container contracts: one route that stands for others.

`/invocations` takes the body of any route. A header or the body's fields say which one is meant,
and it is read, answered and written as there.
"""

from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import Field

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.messages import EmbedMixedResponse, RequestLimits
from service.rest.errors import OPENAI_PATH, renaming_params
from service.rest.inputs import check_json_size, media_type, parse_json, query_of
from service.rest.openai import EmbeddingsBody, answer_embeddings, embed
from service.rest.openapi import (
    BINARY,
    ERRORS,
    NO_HEAD,
    ONE_PIXEL,
    header,
    json_route,
)
from service.rest.responses import JSON
from service.rest.routes import NATIVE, answer_native
from service.rest.token_ids import TokenVocabulary
from service.schema import DialectSchema

# The only header of the client that SageMaker passes on.
ATTRIBUTES: Final = "X-Amzn-SageMaker-Custom-Attributes"
EMBED: Final = "/v1/images:embed"
SEGMENT: Final = "/v1/images:segment"
EMBED_TEXTS: Final = "/v1/texts:embed"
# The first of these fields in a JSON body decides the route.
ROUTE_OF_FIELD: Final = {"input": OPENAI_PATH, "texts": EMBED_TEXTS, "classes": SEGMENT}
EXAMPLE: Final = {
    "instances": ["a dog", {"b64": ONE_PIXEL.partition(",")[2]}],
    "parameters": {"dimensions": 2},
}
INVOKE: Final = json_route(
    {
        JSON: {"schema": {"type": "object"}, "example": EXAMPLE},
        "image/*": {"schema": BINARY},
    },
    {
        "description": "The answer of that route; for `instances`, `predictions` with the entries "
        f"of the `data` of {OPENAI_PATH}.",
        "content": {JSON: {"schema": {"type": "object"}}},
    },
    text=f"The body of any route that takes texts or images. Without the header {ATTRIBUTES}, "
    f"`input` in a JSON body means {OPENAI_PATH}, `texts` {EMBED_TEXTS}, `classes` {SEGMENT}, all "
    f"else {EMBED}. `instances` is Vertex AI's request: items as in `input` of {OPENAI_PATH}, "
    'images also as `{"b64": ...}`, and `parameters`: further fields of that route\'s body.',
    parameters=[
        header(
            ATTRIBUTES,
            f"Path of the route, such as `{SEGMENT}?classes=dog`.",
            {"type": "string"},
        )
    ],
    errors=ERRORS | NO_HEAD,
)


class PredictBody(DialectSchema):
    """Vertex AI's request: texts and images, and options for all of them."""

    instances: list[Any] = Field(fail_fast=True)
    parameters: dict[str, Any] | None = None


def build_cloud_router(plane: DataPlane, vocabulary: TokenVocabulary | None) -> APIRouter:
    """One route that takes the body of any other; without a vocabulary token ids are refused."""
    router = APIRouter(tags=["clouds"])

    @router.post("/invocations", **INVOKE)
    async def invocations(request: Request) -> Response:
        """The answer of another route, chosen by a header or by the body's fields."""
        plane.check_open(current_call.get().caller)
        path, query = EMBED, query_of(request)
        attributes = request.headers.get(ATTRIBUTES) or ""
        if attributes.startswith("/"):  # else it is the client's own, for its logs
            path, _, text = attributes.partition("?")
            query = parse_qsl(text, keep_blank_values=True) or query
        elif media_type(request) == JSON:
            raw = await request.body()  # which the route reads again
            fields = await plane.offload(partial(_fields_of, raw, plane.limits))
            if "instances" in fields:
                return await _predict(request, raw, plane, vocabulary)
            path = next((p for f, p in ROUTE_OF_FIELD.items() if f in fields), EMBED)
        if path == OPENAI_PATH:
            return await answer_embeddings(request, plane, vocabulary, query)
        if path not in NATIVE:
            raise InvalidRequest(
                f"{ATTRIBUTES} must name one of {', '.join(sorted({*NATIVE, OPENAI_PATH}))}.",
                code="unknown_route",
                param=ATTRIBUTES,
            )
        return await answer_native(NATIVE[path], request, plane, query)

    return router


def _fields_of(raw: bytes, limits: RequestLimits) -> frozenset[str]:
    """Field names of a JSON object; empty for other bodies, which the route refuses."""
    check_json_size(raw, limits)
    try:
        document = orjson.loads(raw)
    except ValueError:
        return frozenset()
    return frozenset(document) if isinstance(document, dict) else frozenset()


async def _predict(
    request: Request, raw: bytes, plane: DataPlane, vocabulary: TokenVocabulary | None
) -> Response:
    """The embeddings of Vertex AI's `instances`."""
    asked = await plane.offload(partial(parse_json, raw, PredictBody, plane.limits))
    items = [_plain_item(instance) for instance in asked.instances]
    inner = orjson.dumps({**(asked.parameters or {}), "input": items})
    params = {f"input[{i}]": f"instances[{i}]" for i in range(len(items))}
    with renaming_params(params | {"input": "instances"}):
        body = await plane.offload(partial(parse_json, inner, EmbeddingsBody, plane.limits))
        return await embed(request, plane, body, _predictions, vocabulary=vocabulary)


def _predictions(answer: EmbedMixedResponse, data: list[Any]) -> dict[str, Any]:
    return {"predictions": data}


def _plain_item(instance: Any) -> Any:
    """An item of `/v1/embeddings`; Vertex AI marks base64 of images in two ways."""
    match instance:
        case {"b64": data} if len(instance) == 1:
            return {"image": data}
        case {"image": {"b64": data} | {"bytesBase64Encoded": data}}:
            return {**instance, "image": data}
        case _:
            return instance
