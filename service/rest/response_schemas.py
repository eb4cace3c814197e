"""REST response bodies as pydantic models, for the OpenAPI document and the GET routes."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from service.messages import MANIFEST_FIELDS, ModelInfo


class EncodedArray(BaseModel):
    """An array with `encoding=base64`."""

    dtype: Literal["float32", "float16", "int8", "uint16"]
    shape: list[int]
    data: str = Field(description="Base64 of the little-endian elements, in row-major order.")


Array = EncodedArray | list[Any]
SCALES_TEXT = "With `dtype=int8`, by the names of arrays: factors for the elements of each vector."


class ErrorDetail(BaseModel):
    """An error."""

    message: str
    type: str
    code: str
    param: str | None = Field(description="The wrong field, with the item's index.")


class ItemError(BaseModel):
    """The error of one image or text in a partial answer."""

    index: int
    error: ErrorDetail


EntryT = TypeVar("EntryT", bound=BaseModel)


class ListAnswer(BaseModel, Generic[EntryT]):
    """One entry for each image or text without an error, in the order of the request."""

    object: Literal["list"] = "list"
    model: str
    data: list[EntryT]
    errors: list[ItemError] | None = Field(
        None, description="With `partial`: errors of single images or texts."
    )


class ImageEmbedding(BaseModel):
    """One image's embeddings and maps, as requested."""

    index: int
    patches: Array | None = Field(None, description="[grid height, grid width, width]")
    values: Array | None = Field(None, description="[grid height, grid width, width]")
    cls1: Array | None = Field(None, description="[width]")
    cls2: Array | None = Field(None, description="[width]")
    depth: Array | None = Field(
        None, description="Metres, with eight rows and columns for each patch."
    )
    normals: Array | None = Field(
        None, description="Unit vectors [height, width, 3], in the size of `depth`."
    )
    segmentation: Array | None = Field(
        None, description="Labels of the package's own classes, from 1, in the size of `depth`."
    )
    scales: dict[str, Array | float] | None = Field(None, description=SCALES_TEXT)


class EmbedImagesAnswer(ListAnswer[ImageEmbedding]):
    """One entry for each image."""


class TextEmbedding(BaseModel):
    """One text's embedding, [width]."""

    index: int
    embedding: Array
    scales: dict[str, Array | float] | None = Field(None, description=SCALES_TEXT)


class EmbedTextsAnswer(ListAnswer[TextEmbedding]):
    """One entry for each text."""


class RunLengths(BaseModel):
    """COCO's run-length encoding of one class.

    Run lengths in column order, alternately outside and inside the class.
    """

    size: list[int] = Field(description="Height and width.")
    counts: str | list[int] = Field(description="A string with `rle`, numbers with `rle_counts`.")


class ClassArea(BaseModel):
    """The region of one class. COCO's formats have the last three fields."""

    label: int = Field(description="Value in the mask, from 1.")
    name: str
    color: str = Field(description="Colour in PNG masks, `#rrggbb`.")
    area_share: float = Field(description="Share of the mask's pixels, from 0 to 1.")
    score: float = Field(
        description="Mean probability of the class over its pixels: the softmax of the cosines "
        "over the model's temperature, among all classes, background classes and the threshold. "
        "0 without a pixel."
    )
    area: int | None = Field(None, description="Pixels.")
    bbox: list[int] | None = Field(None, description="Left, top, width and height, in pixels.")
    segmentation: RunLengths | list[list[int]] | None = Field(
        None,
        description="With `polygons`, each as x, y, x, y, ... along the edges of pixels. A cut "
        "joins a hole to its outline.",
    )


class InstanceBody(BaseModel):
    """A connected region of one class."""

    label: int = Field(description="Of its class.")
    area: int = Field(description="Pixels.")
    bbox: list[int] = Field(description="Left, top, width and height, in pixels.")
    score: float = Field(description="Mean probability of the class over the pixels.")
    segmentation: RunLengths | list[list[int]] = Field(
        description="In the requested format of COCO; compressed run lengths with `mask`."
    )


class SegmentationBody(BaseModel):
    """One image's mask."""

    index: int
    height: int
    width: int
    classes: list[ClassArea]
    background_share: float
    labels: Array | None = Field(
        None, description="[height, width]: k for the k-th class, 0 for background."
    )
    scores: Array | None = Field(None, description="[height, width], with `include_scores`.")
    cosines: Array | None = Field(
        None, description="[class, height, width], with `include_scores=all`."
    )
    instances: list[InstanceBody] | None = Field(
        None,
        description="With `include_instances`: by class, then the largest first.",
    )


class SegmentImagesAnswer(ListAnswer[SegmentationBody]):
    """One entry for each image."""


class DepthMap(BaseModel):
    """One image's depth."""

    index: int
    height: int
    width: int
    depth: Array = Field(description="[height, width], in metres.")


class DepthAnswer(ListAnswer[DepthMap]):
    """One entry for each image."""


class NormalMap(BaseModel):
    """One image's surface normals."""

    index: int
    height: int
    width: int
    normals: Array = Field(
        description="[height, width, 3]: a vector of unit length for each pixel."
    )


class NormalsAnswer(ListAnswer[NormalMap]):
    """One entry for each image."""


class ClassShare(BaseModel):
    """The score of one class."""

    label: int = Field(description="Number of the class in the request, from 1.")
    name: str
    probability: float = Field(description="Share among all classes of the request, 0 to 1.")
    cosine: float


class ClassificationBody(BaseModel):
    """One image's classes, the best first."""

    index: int
    classes: list[ClassShare]


class ClassifyImagesAnswer(ListAnswer[ClassificationBody]):
    """One entry for each image."""


class FeatureGroup(BaseModel):
    """One group of similar patches."""

    label: int = Field(description="Value in the map, from 1.")
    color: str = Field(description="Colour in PNG maps, `#rrggbb`.")
    area_share: float = Field(description="Share of the image's pixels, from 0 to 1.")


class FeatureMap(BaseModel):
    """One image's features."""

    index: int
    height: int
    width: int
    groups: list[FeatureGroup] | None = Field(None, description="With `kind=groups`.")
    features: Array = Field(
        description="`colors`: [height, width, 3] from 0 to 1. `component`: [height, width] from 0 "
        "to 1. `groups`: [height, width], the label of each pixel's group."
    )


class VisualizeFeaturesAnswer(ListAnswer[FeatureMap]):
    """One entry for each image."""


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class InferenceErrorBody(BaseModel):
    """The body of every error response below `/v2`."""

    error: str = Field(description="The message.")
    type: str
    code: str
    param: str | None = Field(description="The wrong field, with the item's index.")


class Bucket(BaseModel):
    """One input shape, in pixels, measured at the start."""

    height: int
    width: int
    max_batch_images: int = Field(description="Maximum batch size.")
    run_s: float = Field(description="Seconds for one image on one lane.")
    peak_bytes: int | None = Field(
        description="Peak memory in addition to the weights; null if not known."
    )


class ModelCard(BaseModel):
    """One served model; sizes are in pixels."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Time of loading, in seconds since 1970.")
    owned_by: Literal["tipserve"] = "tipserve"
    variant: str
    embed_dim: int
    patch_size: int
    native_size: int
    min_size: int
    max_size: int
    size_multiple: int
    max_text_tokens: int
    outputs: list[str]
    zero_shot: dict[str, str | float] = Field(description="Defaults of segmentation.")
    runtime: str
    precision: str
    device: str
    runtime_reason: str = Field(description="Why these were chosen, and why not others.")
    package_digest: str = Field(
        description="SHA-256 over the digests of the package's files, except its card. Equal "
        "digests mean equal models."
    )
    parity: list[dict[str, Any]] = Field(
        description="Numerical difference of each graph from the model in float32."
    )
    limits: dict[str, int] = Field(description="Limits of one request.")
    buckets: list[Bucket] = Field(description="Input shapes measured at the start.")
    scores: list[dict[str, Any]]
    licence: str


class ModelList(BaseModel):
    """All served models, the default one first."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Live(BaseModel):
    """The process is live."""

    live: Literal[True] = True


class Ready(BaseModel):
    """The server is ready."""

    ready: Literal[True] = True


class Version(BaseModel):
    """The server's version."""

    version: str


def model_card(info: ModelInfo) -> ModelCard:
    """The description of a served model."""
    manifest = info.manifest
    return ModelCard(
        id=manifest.name,
        created=info.loaded_at,
        runtime=info.runtime,
        precision=info.precision,
        device=info.device,
        runtime_reason=info.runtime_reason,
        package_digest=manifest.digest,
        parity=info.parity_rows(),
        outputs=list(info.outputs),
        limits={name: getattr(info.limits, name) for name in info.limits.__slots__},
        buckets=[Bucket.model_validate(b, from_attributes=True) for b in info.buckets],
        scores=info.scores(),
        zero_shot=manifest.zero_shot.model_dump(),
        **{name: getattr(manifest, name) for name in MANIFEST_FIELDS},
    )
