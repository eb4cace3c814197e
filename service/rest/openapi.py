"""The OpenAPI document: the parts that FastAPI cannot derive.

Routes that read their own body and write their own response are described here, from the models of
their options and from their `ResponseWriter`.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.call import DEFAULT_PRIORITY, PRIORITIES
from service.rest.requests import (
    IMAGE_FIELDS,
    ClassifyImagesBody,
    DepthBody,
    EmbedImagesBody,
    EmbedTextsBody,
    ImageBody,
    MapBody,
    NormalsBody,
    SegmentImagesBody,
    VisualizeFeaturesBody,
)
from service.rest.response_schemas import (
    ClassifyImagesAnswer,
    DepthAnswer,
    EmbedImagesAnswer,
    EmbedTextsAnswer,
    ErrorBody,
    InferenceErrorBody,
    NormalsAnswer,
    SegmentImagesAnswer,
    VisualizeFeaturesAnswer,
)
from service.rest.responses import (
    CLASSES,
    FEATURES,
    IMAGE_EMBEDDINGS,
    JSON,
    MAPS,
    MASKS,
    TEXT_EMBEDDINGS,
    ResponseWriter,
)

Mode = Literal["validation", "serialization"]
RouteText = dict[str, Any]  # keyword arguments of `APIRouter.post`
REF: Final = "#/components/schemas/{model}"
BINARY: Final = {"type": "string", "format": "binary"}
# A PNG file of one pixel.
ONE_PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mM4"
    "AQAAygDJNEIn8wAAAABJRU5ErkJggg=="
)
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


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}


def _examples(path: str) -> dict[str, Any]:
    return {
        summary.lower().replace(",", "").replace(" ", "-"): {"summary": summary, "value": body}
        for summary, body in EXAMPLES[path].items()
    }


def _responses(answer: type[BaseModel], writer: ResponseWriter[Any, Any]) -> Responses:
    content = {media: {"schema": BINARY} for media in writer.media_types}
    content[JSON] = {"schema": _ref(answer)}
    text = "In the media type that `Accept` chooses."
    return {200: {"description": text, "content": content}} | ERRORS


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


def _image_route(
    path: str,
    body: type[ImageBody],
    answer: type[BaseModel],
    writer: ResponseWriter[Any, Any],
) -> RouteText:
    content = {
        "multipart/form-data": {"schema": _form(body)},
        JSON: {"schema": _ref(body), "examples": _examples(path)},
        "image/*": {"schema": BINARY},
    }
    text = (
        "Images in a form, with the options in the form or the query; or JSON with all options; "
        "or one encoded image, with the options in the query."
    )
    return {
        "responses": _responses(answer, writer),
        "openapi_extra": {
            "requestBody": {"required": True, "description": text, "content": content},
            "parameters": _parameters(body),
        },
    }


def _map_route(body: type[MapBody], answer: type[BaseModel], array: list[Any]) -> RouteText:
    """A route of a dense head, with this map of one pixel as the example of its answer."""
    path = f"/v1/images:{body.task}"
    route = _image_route(path, body, answer, MAPS)
    route["responses"] |= NO_HEAD
    item = {"index": 0, "height": 1, "width": 1, body.task: array}
    route["responses"][200]["content"][JSON]["example"] = {
        "object": "list",
        "model": "tipsv2-b14-dpt",
        "data": [item],
    }
    return route


EMBED_IMAGES: Final = _image_route(
    "/v1/images:embed", EmbedImagesBody, EmbedImagesAnswer, IMAGE_EMBEDDINGS
)
SEGMENT_IMAGES: Final = _image_route(
    "/v1/images:segment", SegmentImagesBody, SegmentImagesAnswer, MASKS
)
CLASSIFY_IMAGES: Final = _image_route(
    "/v1/images:classify", ClassifyImagesBody, ClassifyImagesAnswer, CLASSES
)
VISUALIZE_FEATURES: Final = _image_route(
    "/v1/images:features", VisualizeFeaturesBody, VisualizeFeaturesAnswer, FEATURES
)
ESTIMATE_DEPTH: Final = _map_route(DepthBody, DepthAnswer, [[2.25]])
ESTIMATE_NORMALS: Final = _map_route(NormalsBody, NormalsAnswer, [[[0.0, 0.6, 0.8]]])
EMBED_TEXTS: Final[RouteText] = {
    "responses": _responses(EmbedTextsAnswer, TEXT_EMBEDDINGS),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": _ref(EmbedTextsBody), "examples": _examples("/v1/texts:embed")}
            },
        },
        "parameters": CALL_HEADERS,
    },
}


def json_body(body: type[BaseModel]) -> dict[str, Any]:
    """An optional JSON body."""
    return {"requestBody": {"required": False, "content": {JSON: {"schema": _ref(body)}}}}


# Models that only our own `$ref`s name.
BODIES: Final[tuple[type[BaseModel], ...]] = (
    EmbedImagesBody,
    SegmentImagesBody,
    ClassifyImagesBody,
    VisualizeFeaturesBody,
    DepthBody,
    NormalsBody,
    EmbedTextsBody,
)
ANSWERS: Final[tuple[type[BaseModel], ...]] = (
    EmbedImagesAnswer,
    SegmentImagesAnswer,
    ClassifyImagesAnswer,
    VisualizeFeaturesAnswer,
    DepthAnswer,
    NormalsAnswer,
    EmbedTextsAnswer,
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


def add_schemas(
    document: dict[str, Any],
    bodies: Sequence[type[BaseModel]],
    answers: Sequence[type[BaseModel]],
) -> None:
    """Add the schemas of models that only our own `$ref`s name.

    Args:
        document: The OpenAPI document; changed in place.
        bodies: Request bodies of the other protocols.
        answers: Response bodies of the other protocols.
    """
    models: list[tuple[type[BaseModel], Mode]] = [
        (model, "validation") for model in (*BODIES, *bodies)
    ]
    models += [(model, "serialization") for model in (*ANSWERS, *answers)]
    _, definitions = models_json_schema(models, ref_template=REF)
    document["components"]["schemas"] |= definitions["$defs"]
