"""The OpenAPI document: what FastAPI cannot derive of routes that read their own body."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Set
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
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
ONE_PIXEL_MAPS: Final[Mapping[str, list[Any]]] = {
    "depth": [[2.25]],
    "normals": [[[0.0, 0.6, 0.8]]],
}
NAMED: Final = ["dog", {"name": "grass", "prompts": ["grass", "a lawn"]}, "sky"]
# Request bodies of each native route by their summary; a test sends every one of them.
EXAMPLES: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "/v1/images:embed": {
        "One global embedding": {"image": ONE_PIXEL},
        "All outputs, in few bytes": {
            "images": [ONE_PIXEL],
            "outputs": ["cls1", "cls2", "patches", "values"],
            "dtype": "int8",
            "encoding": "base64",
        },
        "A list with a broken image": {
            "images": [ONE_PIXEL, "bm8gcGljdHVyZQ=="],
            "partial": True,
        },
    },
    "/v1/images:segment": {
        "Three classes": {"image": ONE_PIXEL, "classes": NAMED},
        "Sliding windows, masks in a format of COCO": {
            "image": ONE_PIXEL,
            "classes": NAMED,
            "mode": "slide",
            "background_classes": ["wall"],
            "format": "rle",
        },
    },
    "/v1/images:classify": {
        "The two best of three classes": {"image": ONE_PIXEL, "classes": NAMED, "top_k": 2}
    },
    "/v1/images:features": {
        "Colours": {"image": ONE_PIXEL},
        "Groups with the same labels in two images": {
            "images": [ONE_PIXEL, ONE_PIXEL],
            "kind": "groups",
            "group_count": 3,
            "scope": "request",
            "size": "model",
        },
    },
    "/v1/images:depth": {"Metres": {"image": ONE_PIXEL, "size": "image"}},
    "/v1/images:normals": {"Unit vectors": {"image": ONE_PIXEL, "size": "image"}},
    "/v1/texts:embed": {
        "Two texts": {"texts": ["a dog on grass", "the sea at night"]},
        "A class name, averaged over templates": {"texts": ["dog"], "templates": "tcl"},
    },
}


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
CALL_HEADERS: Final[list[dict[str, Any]]] = [
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "required": False,
        "description": "Deadline, in milliseconds from the arrival of the request.",
        "schema": {"type": "integer", "minimum": 1},
    },
    {
        "name": "X-Request-Priority",
        "in": "header",
        "required": False,
        "description": "1 is the most urgent. Less urgent requests wait a limited time longer.",
        "schema": {"type": "integer", "enum": [*PRIORITIES], "default": DEFAULT_PRIORITY},
    },
]


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The members of nested unions; of another schema itself."""
    members = schema.get("anyOf", schema.get("oneOf"))
    if members is None:
        return [schema]
    return [found for member in members for found in _alternatives(member)]


def _option(name: str, schema: Mapping[str, Any], body: type[ImageBody]) -> dict[str, Any]:
    """An option as a query or a form has it: a plain value, or a list of plain values.

    Without `default`: a generated client would send defaults in the query, next to a JSON body.
    """
    members = [one for one in _alternatives(schema) if one.get("type") != "null"]
    if name in body.comma_lists | body.plain_lists:
        (array,) = [one for one in members if one.get("type") == "array"]
        (items,) = [one for one in _alternatives(array["items"]) if one.get("type") == "string"]
        plain = {"type": "array", "items": items}
    else:
        (member,) = members
        plain = {key: member[key] for key in ("type", "enum") if key in member}
    text = schema["description"]
    if (default := schema.get("default")) not in (None, []):
        value = ",".join(default) if isinstance(default, list) else str(default)
        text += f" Default: `{value.lower() if isinstance(default, bool) else value}`."
    return plain | {"description": text}


def _options(body: type[ImageBody]) -> dict[str, dict[str, Any]]:
    """All options of a body that is an image or a form, by name."""
    properties = body.model_json_schema(ref_template=REF)["properties"]
    return {
        name: _option(name, schema, body)
        for name, schema in properties.items()
        if name not in IMAGE_FIELDS
    }


def _parameters(body: type[ImageBody]) -> list[dict[str, Any]]:
    """The options as query parameters."""
    parameters: list[dict[str, Any]] = []
    for name, schema in _options(body).items():
        text = schema.pop("description")
        style = {"style": "form", "explode": False} if name in body.comma_lists else {}
        parameters.append(
            {"name": name, "in": "query", "required": False, "description": text, "schema": schema}
            | style
        )
    return [*parameters, *CALL_HEADERS]


def _form(body: type[ImageBody]) -> dict[str, Any]:
    """The images as files, and the options."""
    files = {
        "image": BINARY | {"description": "One image."},
        "images": {"type": "array", "items": BINARY, "description": "Several images."},
    }
    properties = files | _options(body)
    return {"type": "object", "properties": properties, "additionalProperties": False}


class DirectRoute(APIRoute):
    """A route whose function takes the request and returns the response.

    FastAPI's steps in between parse fields and bodies. They took 5 % of the CPU of a request that
    computes nothing.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself."""
        return self.endpoint


def native_route(
    path: str, body: type[Options], answer: type[BaseModel], media_types: Iterable[str]
) -> dict[str, Any]:
    """Arguments of `APIRouter.post` for a route with these fields, answer and media types."""
    examples = {
        summary.lower().replace(",", "").replace(" ", "-"): {"summary": summary, "value": example}
        for summary, example in EXAMPLES[path].items()
    }
    asked: dict[str, Any] = {"required": True, "content": json_content(body, examples=examples)}
    sent: dict[str, Any] = {media: {"schema": BINARY} for media in media_types if media != JSON}
    parameters, errors = CALL_HEADERS, ERRORS
    if issubclass(body, ImageBody):
        asked["description"] = (
            "Images in a form, with the options in the form or the query; or JSON with all "
            "options; or one encoded image, with the options in the query."
        )
        # The page of the document offers the first one: a form, which uploads a file.
        asked["content"] = {
            "multipart/form-data": {"schema": _form(body)},
            **asked["content"],
            "image/*": {"schema": BINARY},
        }
        parameters = _parameters(body)
    if issubclass(body, MapBody):
        item = {"index": 0, "height": 1, "width": 1, body.task: ONE_PIXEL_MAPS[body.task]}
        example = {"object": "list", "model": "tipsv2-b14-dpt", "data": [item]}
        sent[JSON], errors = {"example": example}, ERRORS | NO_HEAD
    text = "In the media type that `Accept` chooses."
    return {
        "responses": {200: {"description": text, "model": answer, "content": sent}} | errors,
        "openapi_extra": {"requestBody": asked, "parameters": parameters},
    }


def json_content(body: type[BaseModel], **more: Any) -> dict[str, Any]:
    """The content of a request body whose fields `add_bodies` describes."""
    return {JSON: {"schema": {"$ref": REF.format(model=body.__name__)}, **more}}


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
