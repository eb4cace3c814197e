"""REST response bodies."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.messages import ModelInfo

MANIFEST_FIELDS = (
    "variant",
    "embed_dim",
    "patch_size",
    "native_size",
    "min_size",
    "max_size",
    "size_multiple",
    "max_text_tokens",
    "licence",
)


class EncodedArray(BaseModel):
    """An array with `encoding=base64`."""

    dtype: Literal["float32", "float16", "int8", "uint16"]
    shape: list[int]
    data: str = Field(description="base64 of the little-endian elements in row-major order.")


Array = EncodedArray | list[Any]
SCALES_TEXT = (
    "With `dtype=int8`, by the names of arrays: what the elements of each vector are to be "
    "multiplied by."
)
ERRORS_TEXT = "With `partial`: what is wrong with single images or texts."


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str
    param: str | None = Field(description="Field at fault, with the item's index.")


class ItemError(BaseModel):
    """What is wrong with one image or text, where the others have their answers."""

    index: int
    error: ErrorDetail


class ListAnswer(BaseModel):
    """One entry for each image or text that has no error, in the order of the request."""

    object: Literal["list"] = "list"
    model: str
    errors: list[ItemError] | None = Field(None, description=ERRORS_TEXT)


class ImageEmbedding(BaseModel):
    """One image's embeddings; only those that were asked for are there."""

    index: int
    patches: Array | None = Field(None, description="[grid height, grid width, width]")
    values: Array | None = Field(None, description="[grid height, grid width, width]")
    cls1: Array | None = Field(None, description="[width]")
    cls2: Array | None = Field(None, description="[width]")
    scales: dict[str, Array | float] | None = Field(None, description=SCALES_TEXT)


class EmbedImagesAnswer(ListAnswer):
    """One entry for each image."""

    data: list[ImageEmbedding]


class TextEmbedding(BaseModel):
    """One text's embedding, [width]."""

    index: int
    embedding: Array
    scales: dict[str, Array | float] | None = Field(None, description=SCALES_TEXT)


class EmbedTextsAnswer(ListAnswer):
    """One entry for each text."""

    data: list[TextEmbedding]


class RunLengths(BaseModel):
    """COCO's run-length encoding of one class: column by column, pixels outside, inside, ..."""

    size: list[int] = Field(description="Height and width.")
    counts: str | list[int] = Field(description="Compressed with `rle`; numbers with `rle_counts`.")


class ClassArea(BaseModel):
    """Where one class is. The last three are there with COCO's formats."""

    label: int = Field(description="Value in the mask, from 1.")
    name: str
    color: str = Field(description="Colour in PNG masks, `#rrggbb`.")
    area_share: float = Field(description="Share of the image's pixels, from 0 to 1.")
    area: int | None = Field(None, description="Pixels.")
    bbox: list[int] | None = Field(None, description="Left, top, width and height, in pixels.")
    segmentation: RunLengths | list[list[int]] | None = Field(
        None,
        description="With `polygons`, each as x, y, x, y, ... along the edges of pixels; a hole is "
        "joined to its outline by a cut there and back.",
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
    scores: Array | None = Field(None, description="[height, width], where they were asked for.")


class SegmentImagesAnswer(ListAnswer):
    """One entry for each image."""

    data: list[SegmentationBody]


class DepthMap(BaseModel):
    """One image's depth."""

    index: int
    height: int
    width: int
    depth: Array = Field(description="[height, width], in metres.")


class DepthAnswer(ListAnswer):
    """One entry for each image."""

    data: list[DepthMap]


class NormalMap(BaseModel):
    """One image's surface normals."""

    index: int
    height: int
    width: int
    normals: Array = Field(
        description="[height, width, 3]: a vector of unit length for each pixel."
    )


class NormalsAnswer(ListAnswer):
    """One entry for each image."""

    data: list[NormalMap]


class ClassShare(BaseModel):
    """How well one class fits one image."""

    label: int = Field(description="Number of the class in the request, from 1.")
    name: str
    probability: float = Field(description="Share among all classes of the request, 0 to 1.")
    cosine: float


class ClassificationBody(BaseModel):
    """One image's classes, the best first."""

    index: int
    classes: list[ClassShare]


class ClassifyImagesAnswer(ListAnswer):
    """One entry for each image."""

    data: list[ClassificationBody]


class FeatureGroup(BaseModel):
    """One group of patches that are alike."""

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
        "to 1. `groups`: [height, width], the number of each pixel's group."
    )


class VisualizeFeaturesAnswer(ListAnswer):
    """One entry for each image."""

    data: list[FeatureMap]


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class InferenceErrorBody(BaseModel):
    """The body of every answer below `/v2` that is not a success."""

    error: str = Field(description="What went wrong.")
    type: str
    code: str
    param: str | None = Field(description="Field at fault, with the item's index.")


class Bucket(BaseModel):
    """One shape of images, in pixels, that has run before the server was ready."""

    height: int
    width: int
    max_batch_images: int = Field(description="Images that one batch may hold.")
    run_s: float = Field(description="Seconds that one image took on one lane at the start.")
    peak_bytes: int | None = Field(
        description="Memory that it took beside the weights; null where it is not known."
    )


class ModelCard(BaseModel):
    """One served model; sizes are in pixels."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When it was loaded, in seconds since 1970.")
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
    zero_shot: dict[str, str] = Field(description="What segmentation uses where not told.")
    runtime: str
    precision: str
    device: str
    runtime_reason: str = Field(description="Why these were chosen, and what was passed over.")
    package_digest: str = Field(
        description="SHA-256 over the digests of the package's files but its card: the same where "
        "the same is served."
    )
    parity: list[dict[str, Any]] = Field(
        description="How exact each graph in use is, compared with the model in float32."
    )
    limits: dict[str, int] = Field(description="What one request may hold.")
    buckets: list[Bucket] = Field(description="Shapes of images that were measured at the start.")
    scores: list[dict[str, Any]]
    licence: str


class ModelList(BaseModel):
    """All served models, the default one first."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Live(BaseModel):
    """The process answers."""

    live: Literal[True] = True


class Ready(BaseModel):
    """The server takes requests."""

    ready: Literal[True] = True


def model_card(info: ModelInfo) -> ModelCard:
    """What is told about a served model."""
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
