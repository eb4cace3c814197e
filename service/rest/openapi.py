"""What the routes that read their bodies themselves tell about them in the OpenAPI document."""

from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.call import DEFAULT_PRIORITY, PRIORITIES
from service.rest.answer_schemas import (
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
from service.rest.cloud.predict import PredictBody
from service.rest.examples import examples_of
from service.rest.negotiation import JSON, NPY, PNG, SAFETENSORS
from service.rest.open_inference.schemas import InferAnswerBody, InferBody
from service.rest.openai.schemas import EmbeddingsAnswer, EmbeddingsBody
from service.rest.schemas import (
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
)
from service.rest.view_schemas import (
    ClassifyImagesBody,
    ClassifyImagesOptions,
    VisualizeFeaturesBody,
    VisualizeFeaturesOptions,
)

Mode = Literal["validation", "serialization"]

REF: Final = "#/components/schemas/{model}"
BODIES: Final = (
    EmbedImagesBody,
    SegmentImagesBody,
    ClassifyImagesBody,
    VisualizeFeaturesBody,
    DepthBody,
    NormalsBody,
    EmbedTextsBody,
    EmbeddingsBody,
    InferBody,
    PredictBody,
)
ANSWERS: Final = (
    EmbedImagesAnswer,
    SegmentImagesAnswer,
    ClassifyImagesAnswer,
    VisualizeFeaturesAnswer,
    DepthAnswer,
    NormalsAnswer,
    EmbedTextsAnswer,
    EmbeddingsAnswer,
    InferAnswerBody,
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


def add_schemas(document: dict[str, Any]) -> None:
    """Put the schemas that only our own `$ref`s name into the document's components."""
    models: list[tuple[type[BaseModel], Mode]] = [(model, "validation") for model in BODIES]
    models += [(model, "serialization") for model in ANSWERS]
    _, definitions = models_json_schema(models, ref_template=REF)
    document["components"]["schemas"] |= definitions["$defs"]
