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
Scales = dict[str, Array | float]
SCALES_TEXT = "With `dtype=int8`, by the names of arrays: factors for the elements of each vector."


def described(text: str) -> Any:
    """A field that is there whenever it applies."""
    return Field(description=text)


def optional(text: str) -> Any:
    """A field that is there on request."""
    return Field(default=None, description=text)


class ErrorDetail(BaseModel):
    """An error."""

    message: str
    type: str
    code: str
    param: str | None = described("The wrong field, with the item's index.")


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
    errors: list[ItemError] | None = optional("With `partial`: errors of single images or texts.")

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """The name in the document, such as `DepthMapList`."""
        name: str = params[0].__name__
        return f"{name}List"


class Entry(BaseModel):
    """One image or text."""

    index: int = described("Index in the request, from 0.")


class MapEntry(Entry):
    """One image with a value for each pixel."""

    height: int
    width: int


class ImageEmbedding(Entry):
    """One image's embeddings and maps, as requested."""

    patches: Array | None = optional("[grid height, grid width, width]")
    values: Array | None = optional("[grid height, grid width, width]")
    cls1: Array | None = optional("[width]")
    cls2: Array | None = optional("[width]")
    depth: Array | None = optional("Metres, with eight rows and columns for each patch.")
    normals: Array | None = optional("Unit vectors [height, width, 3], in the size of `depth`.")
    segmentation: Array | None = optional(
        "Labels of the package's own classes, from 1, in the size of `depth`."
    )
    scales: Scales | None = optional(SCALES_TEXT)


class TextEmbedding(Entry):
    """One text's embedding, [width]."""

    embedding: Array
    scales: Scales | None = optional(SCALES_TEXT)


class RunLengths(BaseModel):
    """COCO's run-length encoding of one class.

    Run lengths in column order, alternately outside and inside the class.
    """

    size: list[int] = described("Height and width.")
    counts: str | list[int] = described("A string with `rle`, numbers with `rle_counts`.")


class ClassArea(BaseModel):
    """The region of one class. COCO's formats have the last three fields."""

    label: int = described("Value in the mask, from 1.")
    name: str
    color: str = described("Colour in PNG masks, `#rrggbb`.")
    area_share: float = described("Share of the mask's pixels, from 0 to 1.")
    score: float = described(
        "Mean probability of the class over its pixels: the softmax of the cosines over the "
        "model's temperature, among all classes, background classes and the threshold. 0 without "
        "a pixel."
    )
    confidence: float | None = optional(
        "Probability that the mask is right, that is, has an IoU of 0.5 or more with the thing of "
        "this name. 0 without a pixel. Left out if the model cannot tell, and for classes by "
        "example or of a head."
    )
    area: int | None = optional("Pixels.")
    bbox: list[int] | None = optional("Left, top, width and height, in pixels.")
    segmentation: RunLengths | list[list[int]] | None = optional(
        "With `polygons`, each as x, y, x, y, ... along the edges of pixels. With `holes=keep` a "
        "cut joins a hole to its outline."
    )


class InstanceBody(BaseModel):
    """A connected region of one class."""

    label: int = described("Of its class.")
    area: int = described("Pixels.")
    bbox: list[int] = described("Left, top, width and height, in pixels.")
    score: float = described("Mean probability of the class over the pixels.")
    segmentation: RunLengths | list[list[int]] = described(
        "In the requested format of COCO; compressed run lengths with `mask`."
    )


class SegmentationBody(MapEntry):
    """One image's mask."""

    classes: list[ClassArea]
    background_share: float
    labels: Array | None = optional("[height, width]: k for the k-th class, 0 for background.")
    scores: Array | None = optional("[height, width], with `include_scores`.")
    cosines: Array | None = optional("[class, height, width], with `include_scores=all`.")
    instances: list[InstanceBody] | None = optional(
        "With `include_instances`: by class, then the largest first."
    )


class DepthMap(MapEntry):
    """One image's depth."""

    depth: Array = described("[height, width], in metres.")


class NormalMap(MapEntry):
    """One image's surface normals."""

    normals: Array = described("[height, width, 3]: a vector of unit length for each pixel.")


class ClassShare(BaseModel):
    """The score of one class."""

    label: int = described("Number of the class in the request, from 1.")
    name: str
    probability: float = described("Share among all classes of the request, 0 to 1.")
    cosine: float


class ClassificationBody(Entry):
    """One image's classes, the best first."""

    classes: list[ClassShare]


class FeatureGroup(BaseModel):
    """One group of similar patches."""

    label: int = described("Value in the map, from 1.")
    color: str = described("Colour in PNG maps, `#rrggbb`.")
    area_share: float = described("Share of the image's pixels, from 0 to 1.")


class FeatureMap(MapEntry):
    """One image's features."""

    groups: list[FeatureGroup] | None = optional("With `kind=groups`.")
    features: Array = described(
        "`colors`: [height, width, 3] from 0 to 1. `component`: [height, width] from 0 to 1. "
        "`groups`: [height, width], the label of each pixel's group."
    )


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class InferenceErrorBody(BaseModel):
    """The body of every error response below `/v2`."""

    error: str = described("The message.")
    type: str
    code: str
    param: str | None = described("The wrong field, with the item's index.")


class Bucket(BaseModel, from_attributes=True):
    """One input shape, in pixels, measured at the start."""

    height: int
    width: int
    max_batch_images: int = described("Maximum batch size.")
    run_s: float = described("Seconds for one image on one lane.")
    peak_bytes: int | None = described("Peak memory in addition to the weights; null if not known.")


class ModelCard(BaseModel):
    """One served model; sizes are in pixels."""

    id: str
    object: Literal["model"] = "model"
    created: int = described("Time of loading, in seconds since 1970.")
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
    zero_shot: dict[str, str | float] = described("Defaults of segmentation.")
    runtime: str
    precision: str
    device: str
    runtime_reason: str = described("Why these were chosen, and why not others.")
    package_digest: str = described(
        "SHA-256 over the digests of the package's files, except its card. Equal digests mean "
        "equal models."
    )
    parity: list[dict[str, Any]] = described(
        "Numerical difference of each graph from the model in float32."
    )
    limits: dict[str, int] = described("Limits of one request.")
    buckets: list[Bucket] = described("Input shapes measured at the start.")
    scores: list[dict[str, Any]]
    licence: str


class ModelList(BaseModel):
    """All served models, the default one first."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def model_card(info: ModelInfo) -> ModelCard:
    """The description of a served model."""
    manifest = info.manifest
    return ModelCard(
        id=manifest.name,
        created=info.loaded_at,
        package_digest=manifest.digest,
        parity=info.parity_rows(),
        outputs=list(info.outputs),
        limits={name: getattr(info.limits, name) for name in info.limits.__slots__},
        buckets=list(map(Bucket.model_validate, info.buckets)),
        scores=info.scores(),
        zero_shot=manifest.zero_shot.model_dump(),
        **{n: getattr(info, n) for n in ("runtime", "precision", "device", "runtime_reason")},
        **{name: getattr(manifest, name) for name in MANIFEST_FIELDS},
    )
