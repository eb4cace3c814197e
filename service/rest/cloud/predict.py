"""Vertex AI's way to ask: a list of instances and parameters for all, answered by predictions."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Final

import orjson
from fastapi import Request, Response
from pydantic import Field, JsonValue, ValidationError

from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.rest.cloud.inner import json_request
from service.rest.connection import in_time
from service.rest.errors import invalid_fields
from service.rest.image_input import parse_json
from service.rest.negotiation import JSON
from service.rest.openai.inputs import naming
from service.rest.schemas import Schema

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
