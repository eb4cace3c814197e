"""The OpenAPI document: what FastAPI cannot derive of routes that read their own body."""

from collections.abc import Iterable, Mapping, Set
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.call import DEFAULT_PRIORITY, PRIORITIES
from service.rest.requests import IMAGE_FIELDS, ImageBody, MapBody, Options
from service.rest.response_schemas import ErrorBody, InferenceErrorBody
from service.rest.responses import JSON

REF: Final = "#/components/schemas/{model}"
BINARY: Final = {"type": "string", "format": "binary"}
# A PNG file of one pixel.
ONE_PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mM4"
    "AQAAygDJNEIn8wAAAABJRU5ErkJggg=="
)
STATUS_TEXT: Final = {
    401: "The API key is missing or wrong.",
    403: "A web page of another origin sends the request, or its host is not allowed.",
    404: "No served model has this name.",
    406: "The response cannot have an accepted media type.",
    413: "The body or a list in it is too large.",
    415: "The body's media type is not supported.",
    422: "A field is wrong or unknown, or an image cannot be read; `param` says which.",
    429: "The queue, or the memory for bodies, is full; retry after `Retry-After` seconds.",
    500: "An internal error; the message has an id for the server's log.",
    503: "Starting or draining; retry after `Retry-After` seconds.",
    504: "The deadline passed.",
}
RETRY_HEADER: Final = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
Responses = dict[int | str, dict[str, Any]]
ERRORS: Final[Responses] = {
    status: {"description": text, "model": ErrorBody}
    | ({"headers": RETRY_HEADER} if status in {429, 503} else {})
    for status, text in STATUS_TEXT.items()
}
NO_HEAD: Final[Responses] = {
    501: {
        "description": "The model has no head for this task; the message names models that do.",
        "model": ErrorBody,
    }
}
V2_ERRORS: Final[Responses] = {
    status: answer | {"model": InferenceErrorBody} for status, answer in ERRORS.items()
}


def header(name: str, text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """An optional header of requests."""
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


CALL_HEADERS: Final = [
    header(
        "X-Request-Timeout-Ms",
        "Deadline, in milliseconds from the arrival of the request.",
        {"type": "integer", "minimum": 1},
    ),
    header(
        "X-Request-Priority",
        "1 is the most urgent. Less urgent requests wait a limited time longer.",
        {"type": "integer", "enum": [*PRIORITIES], "default": DEFAULT_PRIORITY},
    ),
]


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The members of nested unions except null; of another schema itself."""
    members = schema.get("anyOf", schema.get("oneOf"))
    if members is None:
        return [] if schema.get("type") == "null" else [schema]
    return [found for member in members for found in _alternatives(member)]


def _options(body: type[ImageBody]) -> dict[str, dict[str, Any]]:
    """All options of a body that is an image or a form, by name.

    Each is a plain value, or a list of plain values. Without `default`: a generated client would
    send defaults in the query, next to a JSON body.
    """
    options: dict[str, dict[str, Any]] = {}
    for name, schema in body.model_json_schema(ref_template=REF)["properties"].items():
        if name in IMAGE_FIELDS:
            continue
        members = _alternatives(schema)
        if name in body.comma_lists | body.plain_lists:
            (array,) = [one for one in members if one.get("type") == "array"]
            (items,) = [one for one in _alternatives(array["items"]) if one.get("type") == "string"]
            plain = {"type": "array", "items": items}
        else:
            plain = {key: members[0][key] for key in ("type", "enum") if key in members[0]}
        text = schema["description"]
        if (default := schema.get("default")) not in (None, []):
            value = ",".join(default) if isinstance(default, list) else str(default)
            text += f" Default: `{value.lower() if isinstance(default, bool) else value}`."
        options[name] = plain | {"description": text}
    return options


def _parameters(body: type[ImageBody]) -> list[dict[str, Any]]:
    """The options as query parameters."""
    comma_list = {"style": "form", "explode": False}
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        | {"description": schema.pop("description")}
        | (comma_list if name in body.comma_lists else {})
        for name, schema in _options(body).items()
    ]


def _form(body: type[ImageBody]) -> dict[str, Any]:
    """The images as files, and the options."""
    files = {
        "image": BINARY | {"description": "One image."},
        "images": {"type": "array", "items": BINARY, "description": "Several images."},
    }
    properties = files | _options(body)
    return {"type": "object", "properties": properties, "additionalProperties": False}


def json_content(body: type[BaseModel], **more: Any) -> dict[str, Any]:
    """The content of a request body whose fields `add_bodies` describes."""
    return {JSON: {"schema": {"$ref": REF.format(model=body.__name__)}, **more}}


def json_route(
    content: Mapping[str, Any],
    answer: Mapping[str, Any],
    *,
    text: str = "",
    parameters: Iterable[dict[str, Any]] = (),
    errors: Responses = ERRORS,
) -> dict[str, Any]:
    """Arguments of `APIRouter.post` for a route that reads its body itself.

    Args:
        content: The body by media type.
        answer: Describes the answer without an error.
        text: Describes the body.
        parameters: Besides the headers of every call.
        errors: The other answers.
    """
    asked = {"required": True, "content": content} | ({"description": text} if text else {})
    return {
        "responses": {200: answer, **errors},
        "openapi_extra": {"requestBody": asked, "parameters": [*parameters, *CALL_HEADERS]},
    }


def native_route(
    body: type[Options], answer: type[BaseModel], media_types: Iterable[str], example: Any
) -> dict[str, Any]:
    """Arguments of `APIRouter.post` for a route with these fields, answer and media types."""
    described = {
        "description": "In the media type that `Accept` chooses.",
        "model": answer,
        "content": {media: {"schema": BINARY} for media in media_types if media != JSON},
    }
    content = json_content(body, example=example)
    errors = ERRORS | NO_HEAD if issubclass(body, MapBody) else ERRORS
    if not issubclass(body, ImageBody):
        return json_route(content, described, errors=errors)
    return json_route(
        # The page of the document offers the first one: a form, which uploads a file.
        {"multipart/form-data": {"schema": _form(body)}, **content, "image/*": {"schema": BINARY}},
        described,
        text="Images in a form, with the options in the form or the query; or JSON with all "
        "options; or one encoded image, with the options in the query.",
        parameters=_parameters(body),
        errors=errors,
    )


KEY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of the server."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}


def add_security(document: dict[str, Any], open_paths: Set[str], *, needs_key: bool) -> None:
    """Add the API key: to be sent to all routes except the open ones, or as an option to all.

    Args:
        document: The OpenAPI document; changed in place.
        open_paths: Routes that need no key.
        needs_key: Whether the server has keys.
    """
    document["components"]["securitySchemes"] = KEY_SCHEMES
    keys: list[dict[str, list[str]]] = [{name: []} for name in KEY_SCHEMES]
    document["security"] = keys if needs_key else [{}, *keys]
    for path in open_paths & document["paths"].keys():
        for operation in document["paths"][path].values():
            operation["security"] = []


def add_bodies(document: dict[str, Any], bodies: Iterable[type[BaseModel]]) -> None:
    """Add the schemas of request bodies, which FastAPI does not read."""
    _, found = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
    document["components"]["schemas"] |= found["$defs"]
