"""The format of Hugging Face's inference endpoints, and `/embed` of TEI.

The body decides the task: with `candidate_labels`, `inputs` is an image to classify, or an object
with it; else it is texts to embed. The paths are those that clients build: `InferenceClient` sends
to the URL that it is given, TEI's clients to `/embed`.
"""

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, Discriminator, Field, Tag

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest, UnsupportedMedia
from service.messages import ClassifyImagesRequest, EmbedMixedRequest, SegmentClass, Truncation
from service.rest.errors import renaming_params
from service.rest.inputs import load_images, media_type, query_of, read_json
from service.rest.openai import IGNORED_TEXT, LIST_TAG, TEXT_TAG
from service.rest.openapi import json_content, json_route
from service.rest.requests import Strings
from service.rest.responses import JSON, choose_media, dump, write_content
from service.schema import DialectSchema

PATHS: Final = ("/", "/embed")
IMAGE_TAG: Final = "<image>"
# huggingface_hub gives no type with bytes.
IMAGE_TYPES: Final = ("image/", "application/octet-stream")
# To `image_classification` and `image_segmentation`, which send the image alone as the body.
NO_CLASSES: Final = (
    "A zero-shot model needs the names of classes: send application/json with "
    "parameters.candidate_labels (zero_shot_image_classification), or the image to "
    "/v1/images:classify?classes=dog,cat or /v1/images:segment?classes=dog,cat."
)


class TaskParameters(DialectSchema):
    """Parameters of `zero-shot-image-classification`; the default template is transformers'."""

    candidate_labels: Strings = Field(default_factory=list)
    """Names of the classes."""
    hypothesis_template: str = "This is a photo of {}."


class ImageObject(DialectSchema):
    """The image of `zero-shot-image-classification`, as `@huggingface/inference` sends it."""

    image: str
    """The image as base64."""


def _tag_of(value: object) -> str:
    if isinstance(value, dict | ImageObject):
        return IMAGE_TAG
    return TEXT_TAG if isinstance(value, str) else LIST_TAG


class TaskBody(DialectSchema):
    """Texts to embed; or, with `candidate_labels`, an image to classify."""

    inputs: Annotated[
        Annotated[str, Tag(TEXT_TAG)]
        | Annotated[Strings, Tag(LIST_TAG)]
        | Annotated[ImageObject, Tag(IMAGE_TAG)],
        Discriminator(_tag_of),
        Field(description="A text, or a list of texts; or an image, alone or in an object."),
    ]
    parameters: TaskParameters = TaskParameters()
    normalize: bool = True
    """Scale every vector to unit length."""
    truncate: bool | None = None
    """Whether to shorten or to refuse texts that are longer than the model reads. Default: the
    model reads the beginning of texts of at most 2,000 characters."""
    truncation_direction: Annotated[
        Literal["left", "right"],
        BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    ] = "right"
    dimensions: int | None = None
    prompt_name: str | None = Field(default=None, description=IGNORED_TEXT)

    @property
    def truncation(self) -> Truncation | None:
        """What to drop of a text."""
        if not self.truncate:
            return None if self.truncate is None else "NONE"
        return "START" if self.truncation_direction == "left" else "END"


ROUTE: Final = json_route(
    json_content(TaskBody),
    {
        "description": "A vector for each text; or `label` and `score` of each class, the best "
        "first.",
        "content": {JSON: {"schema": {"type": "array", "items": {}}}},
    },
)


def build_hugging_face_router(plane: DataPlane) -> APIRouter:
    """One route, at the paths of both."""
    router = APIRouter(tags=["hugging face"])

    async def run_task(request: Request) -> Response:
        """Vectors of texts, or classes of an image, in the format of Hugging Face."""
        plane.check_open(current_call.get().caller)
        choose_media(request.headers.get("accept"), (JSON,))
        if media_type(request).startswith(IMAGE_TYPES) or not media_type(request):
            raise UnsupportedMedia(NO_CLASSES, param="Content-Type")
        body = await read_json(request, plane, TaskBody, query_of(request))
        if body.parameters.candidate_labels:
            return await _classify(request, plane, body)
        return await _embed(plane, body)

    for path in PATHS:
        # The OpenAPI document does not have the page, which is GET of the same path.
        router.post(path, include_in_schema=path != "/", **ROUTE)(run_task)
    return router


async def _embed(plane: DataPlane, body: TaskBody) -> Response:
    if isinstance(body.inputs, ImageObject):
        raise InvalidRequest(NO_CLASSES, param="parameters.candidate_labels")
    texts = (body.inputs,) if isinstance(body.inputs, str) else tuple(body.inputs)
    if not texts:
        raise InvalidRequest("inputs is empty.", code="empty_list", param="inputs")
    message = EmbedMixedRequest(
        texts=texts,
        dimensions=body.dimensions,
        normalize=body.normalize,
        truncate=body.truncation,
    )
    with renaming_params(_params("texts", len(texts))):
        answer = await plane.embed_mixed(message, current_call.get())
    rows_TD = answer.texts_TD
    content = await write_content(plane, lambda: dump(list(rows_TD)), rows_TD.size)
    return Response(content, media_type=JSON)


async def _classify(request: Request, plane: DataPlane, body: TaskBody) -> Response:
    image = body.inputs.image if isinstance(body.inputs, ImageObject) else body.inputs
    if not isinstance(image, str):
        raise InvalidRequest("inputs: with candidate_labels, give one image.", param="inputs")
    labels = body.parameters.candidate_labels
    params = _params("images", 1) | {
        f"classes[{i}]": f"parameters.candidate_labels[{i}]" for i in range(len(labels))
    }
    with renaming_params(params):
        message = ClassifyImagesRequest(
            images=await load_images(request, plane, (image,)),
            classes=tuple(SegmentClass(name=label) for label in labels),
            templates=(body.parameters.hypothesis_template,),
        )
        answer = await plane.classify_images(message, current_call.get())
    rows = [
        {"label": answer.classes[label - 1], "score": probability}
        for label, probability, _ in answer.classifications[0].rows()
    ]
    return Response(dump(rows), media_type=JSON)


def _params(field: str, count: int) -> dict[str, str]:
    """The client's name for each field of the data plane."""
    names = ["inputs"] if count == 1 else [f"inputs[{i}]" for i in range(count)]
    return {field: "inputs"} | {f"{field}[{i}]": name for i, name in enumerate(names)}
