"""The OpenAPI document and its page."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.call import DEFAULT_PRIORITY, PRIORITIES
from service.rest.requests import (
    ClassifyImagesBody,
    ClassifyImagesOptions,
    DepthBody,
    DepthOptions,
    EmbedImagesBody,
    EmbedImagesOptions,
    EmbedTextsBody,
    MapOptions,
    NormalsBody,
    NormalsOptions,
    Options,
    SegmentImagesBody,
    SegmentImagesOptions,
    VisualizeFeaturesBody,
    VisualizeFeaturesOptions,
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
from service.rest.responses import JSON, NPY, PNG, SAFETENSORS

# A request body for each route of ours, for the OpenAPI page; a test sends every one of them.

# A whole PNG file, as JSON has it.
ONE_PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mM4"
    "AQAAygDJNEIn8wAAAABJRU5ErkJggg=="
)
CLASSES: Final = ["dog", {"name": "grass", "prompts": ["grass", "a lawn"]}, "sky"]
Body = Mapping[str, Any]
EXAMPLES: Final[Mapping[str, Mapping[str, Body]]] = {
    "/v1/images:embed": {
        "One global embedding": {"image": ONE_PIXEL},
        "Everything, in few bytes": {
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
        "Three classes": {"image": ONE_PIXEL, "classes": CLASSES},
        "Through windows, as COCO has masks": {
            "image": ONE_PIXEL,
            "classes": CLASSES,
            "mode": "slide",
            "background_classes": ["wall"],
            "format": "rle",
        },
    },
    "/v1/images:classify": {
        "The two best of three classes": {"image": ONE_PIXEL, "classes": CLASSES, "top_k": 2}
    },
    "/v1/images:features": {
        "Colours": {"image": ONE_PIXEL},
        "Groups in two images, numbered alike": {
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


def examples_of(path: str) -> dict[str, Any]:
    """As OpenAPI has them; the names are told to readers."""
    return {
        name.lower().replace(",", "").replace(" ", "-"): {"summary": name, "value": body}
        for name, body in EXAMPLES[path].items()
    }


# What the routes that read their bodies themselves tell about them in the OpenAPI document.

Mode = Literal["validation", "serialization"]
REF: Final = "#/components/schemas/{model}"
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
BINARY: Final = {"type": "string", "format": "binary"}
STATUS_TEXT: Final = {
    401: "Where the server wants a key: none was sent, or one that it does not know.",
    404: "No model of that name is served.",
    406: "The answer cannot be written in an accepted media type.",
    408: "The body came too slowly.",
    413: "The body or a list in it is too large.",
    415: "The body's media type is not read here.",
    422: "A field is wrong or unknown, or an image cannot be read; `param` has the item's index.",
    429: "The queue, or the memory for bodies, is full; come back after `Retry-After` seconds.",
    500: "Ours; the message has an id to look up.",
    503: "Starting or draining; come back after `Retry-After` seconds.",
    504: "The deadline passed.",
}
RETRY_HEADER: Final = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, "model": ErrorBody}
    | ({"headers": RETRY_HEADER} if status in {429, 503} else {})
    for status, text in STATUS_TEXT.items()
}
NO_HEAD: Final[dict[int | str, dict[str, Any]]] = {
    501: {
        "description": "The model has no head for this; the message says what has.",
        "model": ErrorBody,
    }
}
V2_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: answer | {"model": InferenceErrorBody} for status, answer in ERRORS.items()
}
CALL_HEADERS: Final[list[dict[str, Any]]] = [
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "required": False,
        "description": "Milliseconds after which the answer is of no use.",
        "schema": {"type": "integer", "minimum": 1},
    },
    {
        "name": "X-Request-Priority",
        "in": "header",
        "required": False,
        "description": "1 goes first. What is less urgent waits a bounded time longer.",
        "schema": {"type": "integer", "enum": [*PRIORITIES], "default": DEFAULT_PRIORITY},
    },
]


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}


def _responses(answer: type[BaseModel], *binary: str) -> dict[int | str, dict[str, Any]]:
    content: dict[str, Any] = {JSON: {"schema": _ref(answer)}}
    content |= {media: {"schema": BINARY} for media in binary}
    return {200: {"description": "In the media type that `Accept` asks for.", "content": content}}


def _parameters(options: type[Options]) -> list[dict[str, Any]]:
    """The fields as query parameters, for a raw body or beside a form."""
    properties = options.model_json_schema(ref_template=REF)["properties"]
    parameters: list[dict[str, Any]] = []
    for name, schema in properties.items():
        is_list = name in options.comma_lists
        text = schema.pop("description", "")
        plain = {"type": "array", "items": {"type": "string"}} if is_list else schema
        style = {"style": "form", "explode": False} if is_list else {}
        parameters.append(
            {"name": name, "in": "query", "required": False, "description": text, "schema": plain}
            | style
        )
    return [*parameters, *CALL_HEADERS]


def _image_body(body: type[BaseModel], path: str) -> dict[str, Any]:
    form = {"type": "object", "properties": {"images": {"type": "array", "items": BINARY}}}
    content = {
        "image/*": {"schema": BINARY},
        JSON: {"schema": _ref(body), "examples": examples_of(path)},
        "multipart/form-data": {"schema": form},
    }
    text = "One encoded image as it is, with the options in the query; or a form; or JSON."
    return {"required": True, "description": text, "content": content}


EMBED_IMAGES: Final[dict[str, Any]] = {
    "responses": _responses(EmbedImagesAnswer, NPY, SAFETENSORS) | ERRORS,
    "openapi_extra": {
        "requestBody": _image_body(EmbedImagesBody, "/v1/images:embed"),
        "parameters": _parameters(EmbedImagesOptions),
    },
}
SEGMENT_IMAGES: Final[dict[str, Any]] = {
    "responses": _responses(SegmentImagesAnswer, NPY, SAFETENSORS, PNG) | ERRORS,
    "openapi_extra": {
        "requestBody": _image_body(SegmentImagesBody, "/v1/images:segment"),
        "parameters": _parameters(SegmentImagesOptions),
    },
}
CLASSIFY_IMAGES: Final[dict[str, Any]] = {
    "responses": _responses(ClassifyImagesAnswer, NPY, SAFETENSORS) | ERRORS,
    "openapi_extra": {
        "requestBody": _image_body(ClassifyImagesBody, "/v1/images:classify"),
        "parameters": _parameters(ClassifyImagesOptions),
    },
}
VISUALIZE_FEATURES: Final[dict[str, Any]] = {
    "responses": _responses(VisualizeFeaturesAnswer, NPY, SAFETENSORS, PNG) | ERRORS,
    "openapi_extra": {
        "requestBody": _image_body(VisualizeFeaturesBody, "/v1/images:features"),
        "parameters": _parameters(VisualizeFeaturesOptions),
    },
}


def _estimate(
    options: type[MapOptions],
    body: type[BaseModel],
    answer: type[BaseModel],
    example: list[Any],
) -> dict[str, Any]:
    """With an example of the answer: this map of one pixel."""
    asked = _image_body(body, f"/v1/images:{options.task}")
    given = _responses(answer, NPY, SAFETENSORS, PNG)
    item = {"index": 0, "height": 1, "width": 1, options.task: example}
    given[200]["content"][JSON]["example"] = {
        "object": "list",
        "model": "tipsv2-b14-dpt",
        "data": [item],
    }
    return {
        "responses": given | ERRORS | NO_HEAD,
        "openapi_extra": {"requestBody": asked, "parameters": _parameters(options)},
    }


ESTIMATE_DEPTH: Final = _estimate(DepthOptions, DepthBody, DepthAnswer, [[2.25]])
ESTIMATE_NORMALS: Final = _estimate(NormalsOptions, NormalsBody, NormalsAnswer, [[[0.0, 0.6, 0.8]]])
EMBED_TEXTS: Final[dict[str, Any]] = {
    "responses": _responses(EmbedTextsAnswer, NPY, SAFETENSORS) | ERRORS,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": _ref(EmbedTextsBody), "examples": examples_of("/v1/texts:embed")}
            },
        },
        "parameters": [*CALL_HEADERS],
    },
}


def json_body(body: type[BaseModel]) -> dict[str, Any]:
    """A JSON body that may be left out; its schema stands where it is used."""
    schema = body.model_json_schema()
    definitions = schema.pop("$defs", {})
    for name, field in schema["properties"].items():
        reference = field.get("$ref", "").rpartition("/")[2]
        if reference:
            schema["properties"][name] = definitions[reference]
    return {"requestBody": {"required": False, "content": {JSON: {"schema": schema}}}}


def add_schemas(
    document: dict[str, Any],
    bodies: Sequence[type[BaseModel]],
    answers: Sequence[type[BaseModel]],
) -> None:
    """Add the schemas that only our own `$ref`s name to the document's components.

    Args:
        document: The OpenAPI document; changed in place.
        bodies: Request bodies of other dialects, beside the native ones.
        answers: Response bodies of other dialects, beside the native ones.
    """
    models: list[tuple[type[BaseModel], Mode]] = [
        (model, "validation") for model in (*BODIES, *bodies)
    ]
    models += [(model, "serialization") for model in (*ANSWERS, *answers)]
    _, definitions = models_json_schema(models, ref_template=REF)
    document["components"]["schemas"] |= definitions["$defs"]
