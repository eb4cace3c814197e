"""REST requests as pydantic models that turn into messages.

Defaults come from the message classes. Unknown fields are refused. A query or a form has the fields
of the JSON body, except the images.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WrapValidator,
)

from model.dense_maps import MapTask
from model.graphs import DENSE_TASKS
from model.preprocess import Fit
from service import messages
from service.schema import Schema

ImageInputs = tuple[messages.MaybeEncoded, ...]
Encoding = Literal["list", "base64"]
MaskFormat = Literal["mask", "labels", "overlay", "heatmap", "rle", "rle_counts", "polygons"]
DepthFormat = Literal["millimetres", "colors"]
COCO_FORMATS = frozenset({"rle", "rle_counts", "polygons"})
TEMPLATE_SETS = ("none", "tcl")
# Names of union members. Error paths omit names in angle brackets.
NAME_TAG, CLASS_TAG, SET_TAG, OWN_TAG = "<name>", "<class>", "<set>", "<own>"
# Fields of REST alone: the images, and how the answer is written.
IMAGE_FIELDS = frozenset({"image", "images"})
REST_FIELDS = IMAGE_FIELDS | {"encoding", "format", "tolerance"}
CLASS_FIELDS = frozenset({"classes", "background_classes"})
# Names in the message that differ from those on the wire.
RENAMED = {"dtype": "vector_type"}
MODEL_TEXT = "Name of a served model. Default: the first."
TEMPLATES_TEXT = (
    "Prompt templates for each text: `none`, `tcl`, or a list of your own, each with one `{}`. "
    "Embeddings are averaged over templates."
)
CLASSES_TEXT = (
    "Names, or objects of a name and its prompts; or only `head:NAME`, for the classes of a head."
)
# A list of a request stops at its first invalid item: an error for each of a million items takes
# 5 s with the GIL held, and 850 MiB. tests/service/rest/test_requests.py looks at every list.
Strings = Annotated[list[str], Field(fail_fast=True)]


class RunLengthsBody(Schema):
    """A mask as compressed run lengths of COCO."""

    size: tuple[int, int]
    """Height and width: those of the image."""
    counts: str


class ExampleBody(Schema):
    """Patches that show a class; without a point, box or mask, those of the whole image."""

    image: int = 0
    """Index of the image in the request, from 0."""
    point: tuple[float, float] | None = None
    """x and y, in pixels: the patch around it."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, width and height, in pixels: the patches within it."""
    mask: RunLengthsBody | None = None
    """The patches within it."""


class ClassBody(Schema):
    """A class with several prompts, or with examples."""

    name: str
    """Name in the answer."""
    prompts: Strings = Field(default=[])
    """Texts for this class, pooled. Default: the name."""
    pool: messages.PromptPool = "mean"
    """`mean`: pixels and images are compared with the mean of the prompts. `max`: with each prompt,
    and the best one counts; for words with different kinds, such as dog."""
    examples: list[ExampleBody] = Field(default=[], fail_fast=True)
    """Patches that show the class, instead of prompts, averaged. Either all classes and background
    classes have examples, or none. For segmentation."""


def _unwrap_template_set(value: object) -> object:
    """`templates=tcl` in a query arrives as a list of one."""
    if isinstance(value, list) and len(value) == 1 and value[0] in TEMPLATE_SETS:
        return value[0]
    return value


NamedClass = Annotated[
    Annotated[str, Tag(NAME_TAG)] | Annotated[ClassBody, Tag(CLASS_TAG)],
    Discriminator(lambda value: NAME_TAG if isinstance(value, str) else CLASS_TAG),
]
NamedClasses = Annotated[list[NamedClass], Field(fail_fast=True)]
Templates = Annotated[
    Annotated[
        Annotated[messages.TemplateSet, Tag(SET_TAG)] | Annotated[Strings, Tag(OWN_TAG)],
        Discriminator(lambda value: SET_TAG if isinstance(value, str) else OWN_TAG),
    ],
    BeforeValidator(_unwrap_template_set),
]
ModelTemplates = Annotated[
    Templates | None, Field(description=TEMPLATES_TEXT + " Default: the model's own.")
]
FitField = Annotated[
    Fit, Field(description="`squash` resizes to a square; `aspect` keeps the aspect ratio.")
]
NormalizeField = Annotated[bool, Field(description="Scale every embedding to unit length.")]
VectorTypeField = Annotated[
    messages.VectorType,
    Field(
        description="Type of the numbers: `float32`, `float16`, or `int8` with a scale for each "
        "vector (its greatest magnitude over 127); multiply the elements by it."
    ),
]


def _read_scores(value: object, handler: Callable[[object], object]) -> object:
    try:
        return handler(value)
    except ValidationError:
        raise ValueError("Give false, true or all") from None


IncludeScores = Annotated[bool | Literal["all"], WrapValidator(_read_scores)]


def to_classes(classes: list[str | ClassBody]) -> tuple[messages.SegmentClass, ...]:
    """Classes for the data plane."""
    return tuple(
        messages.SegmentClass(name=one)
        if isinstance(one, str)
        else messages.SegmentClass(
            name=one.name,
            prompts=tuple(one.prompts),
            pool=one.pool,
            examples=tuple(map(_to_example, one.examples)),
        )
        for one in classes
    )


def _to_example(body: ExampleBody) -> messages.ClassExample:
    mask = body.mask
    runs = None if mask is None else messages.RunLengths(size_hw=mask.size, counts=mask.counts)
    return messages.ClassExample(image=body.image, point=body.point, box=body.box, mask=runs)


class Options(Schema):
    """Options of every method."""

    message_type: ClassVar[Callable[..., Any]]
    # Query fields whose value is a list separated by commas, or may be given several times.
    comma_lists: ClassVar[frozenset[str]] = frozenset()
    plain_lists: ClassVar[frozenset[str]] = frozenset({"templates"})

    model: str | None = Field(default=None, description=MODEL_TEXT)
    encoding: Encoding = "list"
    """Arrays in JSON: nested lists, or base64 with dtype and shape."""
    partial: bool = False
    """Answer the valid images or texts even if others are wrong: status 200, with `errors` next to
    `data`. For JSON and safetensors."""

    def to_message(self, images: ImageInputs = (), *, is_json: bool = False) -> Any:
        """The request for the data plane; `is_json` says how it is answered."""
        fields = self.message_fields(is_json=is_json)
        if isinstance(self, ImageBody):
            fields["images"] = images
        return self.message_type(**fields)

    def message_fields(self, *, is_json: bool) -> dict[str, Any]:
        """The fields of the data plane's message, as its keyword arguments."""
        fields: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name in CLASS_FIELDS:
                fields[name] = to_classes(value)
            elif name not in REST_FIELDS:
                fields[RENAMED.get(name, name)] = tuple(value) if isinstance(value, list) else value
        return fields


class ImageBody(Options):
    """The images, either `image` or `images`, and the options of every method on images."""

    image: str | None = None
    """One image: base64, a `data:` URI with base64, or an `https:` URL of a host that the server
    allows."""
    images: Strings | None = None
    """Several images."""
    resolution: int | None = None
    """Short side in pixels of the model's input. Default: its native size."""


class EmbedImagesBody(ImageBody):
    """Images to embed."""

    message_type = messages.EmbedImagesRequest
    comma_lists = frozenset({"outputs"})

    outputs: Strings = Field(
        default=list(messages.EmbedImagesRequest.outputs),
        json_schema_extra={
            "items": {"type": "string", "enum": [*messages.IMAGE_OUTPUTS, *DENSE_TASKS]}
        },
    )
    """The outputs to send, computed in one pass. `depth`, `normals` and `segmentation` need a model
    with dense heads and have eight rows and columns for each patch."""
    normalize: NormalizeField = messages.EmbedImagesRequest.normalize
    fit: FitField = messages.EmbedImagesRequest.fit
    dtype: VectorTypeField = messages.EmbedImagesRequest.vector_type


class SegmentImagesBody(ImageBody):
    """Images to segment, and the classes."""

    message_type = messages.SegmentImagesRequest
    comma_lists = frozenset({"classes", "background_classes"})

    classes: NamedClasses = Field(
        default=[], description=f"{CLASSES_TEXT} The k-th has the label k."
    )
    background_classes: NamedClasses = Field(default=[])
    """Classes that count as background, with the label 0."""
    background_threshold: float | None = None
    """Pixels whose best class has a lower cosine are background, in either mode. From -1 to 1.
    Default: no threshold."""
    background: messages.SegmentBackground | None = messages.SegmentImagesRequest.background
    """`auto`: pixels whose best class has a cosine far below the largest one of that class in the
    image are background, and a class with small cosines everywhere is absent. `none`: no pixel is,
    without a threshold or background classes. Default: `none` with those or a head, else `auto` for
    one class and the model's own for several."""
    background_level: float | None = messages.SegmentImagesRequest.background_level
    """For `background` `auto`: the cosine that a pixel needs, from 0 for the least to 1 for the
    largest of its class in the image. Default: the model's own."""
    quality: messages.SegmentQuality | None = messages.SegmentImagesRequest.quality
    """`published`: cosines of patches are scaled bilinearly, as released. `fast`: they follow the
    image's colours, so that masks have its outlines. `fine`: as `fast`, and the model also sees the
    image at 1.6 times the resolution. Default: the model's own."""
    templates: ModelTemplates = None
    features: messages.Features | None = None
    """Patch embeddings to use. Default: the model's own."""
    fit: Fit | None = messages.SegmentImagesRequest.fit
    """`squash` resizes to a square; `aspect` keeps the aspect ratio. Default: `squash` for classes
    `model`, as released, `aspect` for others."""
    mode: messages.SegmentMode | None = messages.SegmentImagesRequest.mode
    """`whole`: the model sees the whole image. `slide`: it sees windows of its native size, which
    overlap by a quarter, on an image whose short side is the resolution; probabilities of the
    classes are averaged over windows. Default: the model's own."""
    include_scores: IncludeScores = messages.SegmentImagesRequest.include_scores
    """`true`: send the best class's cosine for every pixel. `all`: send that of every class
    instead, as `cosines` [class, height, width]. In slide mode they are averaged over windows. In
    JSON or safetensors. A cosine takes four bytes, or some twelve in a JSON list."""
    include_instances: bool = messages.SegmentImagesRequest.include_instances
    """Send the connected regions of each class with area, box and score, in JSON."""
    min_area_share: float = messages.SegmentImagesRequest.min_area_share
    """Share of the mask's pixels of the smallest instance, and of the smallest polygon, from 0.0001
    to 1. Their smaller holes are filled."""
    holes: messages.Holes | None = None
    """Other holes of polygons and instances. `fill`: an outline is the outer one alone. `keep`:
    holes stay; in polygons a cut of no width joins them to the outline, which editors draw as a
    slit. Default: `fill` for polygons, `keep` for run lengths."""
    size: messages.MaskSize = messages.SegmentImagesRequest.size
    """Size of the mask: that of the `image`, of the `model`'s input, or a pixel for each `patch`.
    """
    format: MaskFormat = "mask"
    """`mask`: one array; as PNG with colours. `labels`: a grey PNG, 16 bits from 256 classes on.
    `overlay`: a PNG of the image with tinted and outlined classes over the darkened rest; a class
    whose colour is close to the image below gets another one. `heatmap`: a PNG of the image
    with the cosines of its one class, from dark violet for the least to pale yellow for the largest
    of the image. In JSON, each class in a format of COCO: `rle` (compressed), `rle_counts`
    (numbers), `polygons`."""
    tolerance: float = Field(default=0, ge=0, le=100)
    """Simplify polygons: no point moves by more than so many pixels."""

    def message_fields(self, *, is_json: bool) -> dict[str, Any]:
        """As `Options.message_fields`; JSON alone has a score for each class."""
        return super().message_fields(is_json=is_json) | {
            "include_scores": self.include_scores is True,
            "include_all_scores": self.include_scores == "all" or self.format == "heatmap",
            "include_class_scores": is_json,
            "holes": self.outline_holes,
        }

    @property
    def outline_holes(self) -> messages.Holes:
        """What becomes of holes. Polygons cannot have any, run lengths can."""
        return self.holes or ("fill" if self.format == "polygons" else "keep")


class ClassifyImagesBody(ImageBody):
    """Images to classify, and the classes."""

    message_type = messages.ClassifyImagesRequest
    comma_lists = frozenset({"classes"})

    classes: NamedClasses = Field(
        default=[], description=f"{CLASSES_TEXT} The k-th has the label k."
    )
    templates: ModelTemplates = None
    features: messages.GlobalFeatures = messages.ClassifyImagesRequest.features
    """Global embedding to use: `cls1` was trained with web captions, `cls2` with descriptions of
    the whole scene."""
    temperature: float | None = messages.ClassifyImagesRequest.temperature
    """Divides the cosines before the softmax. Default: the model's own."""
    top_k: int | None = messages.ClassifyImagesRequest.top_k
    """Send only the k best classes. Default: all."""
    fit: FitField = messages.ClassifyImagesRequest.fit


class VisualizeFeaturesBody(ImageBody):
    """Images whose features to visualize."""

    message_type = messages.VisualizeFeaturesRequest

    kind: messages.FeatureKind = messages.VisualizeFeaturesRequest.kind
    """`colors`: the first three principal components, whitened, as red, green and blue by
    `sigmoid(2 x)`. `component`: the first one, scaled to 0 to 1. `groups`: clusters of patches by
    k-means, numbered from 1 for the largest."""
    features: messages.Features = messages.VisualizeFeaturesRequest.features
    """Patch embeddings to use."""
    scope: messages.FeatureScope = messages.VisualizeFeaturesRequest.scope
    """Fit components and groups to each `image`, or once to all images of the `request`, so that
    colours and labels are comparable between images."""
    group_count: int | None = messages.VisualizeFeaturesRequest.group_count
    """Number of groups, from 2 to 20. Default: 6."""
    seed: int | None = messages.VisualizeFeaturesRequest.seed
    """Seed of the initial centres of groups, from 0. Equal requests have equal answers. Default: 0.
    """
    fit: FitField = messages.VisualizeFeaturesRequest.fit
    size: messages.MapSize = messages.VisualizeFeaturesRequest.size
    """Size of the maps: that of the `image`, or of the `model`, with one element for each patch."""


class MapBody(ImageBody):
    """Images to estimate a value for every pixel of."""

    message_type = messages.EstimateMapsRequest
    task: ClassVar[MapTask]

    fit: FitField = messages.EstimateMapsRequest.fit
    size: messages.MapSize = messages.EstimateMapsRequest.size
    """Size of the maps: that of the `image`, or of the `model`, with eight rows and columns for
    each patch."""

    def message_fields(self, *, is_json: bool) -> dict[str, Any]:
        """As `Options.message_fields`."""
        return super().message_fields(is_json=is_json) | {"task": self.task}


class DepthBody(MapBody):
    """Images whose depth to estimate."""

    task = "depth"

    format: DepthFormat | None = None
    """For a PNG. `millimetres`: 16-bit grey, at most 65535. `colors`: from pale yellow for the
    nearest point to dark violet for the farthest. Default: `millimetres`."""


class NormalsBody(MapBody):
    """Images whose surface normals to estimate."""

    task = "normals"


class EmbedTextsBody(Options):
    """Texts to embed."""

    message_type = messages.EmbedTextsRequest

    texts: Strings
    """At least one text; none may be blank."""
    templates: Templates = Field(default=messages.TEXT_TEMPLATES, description=TEMPLATES_TEXT)
    normalize: NormalizeField = messages.EmbedTextsRequest.normalize
    dtype: VectorTypeField = messages.EmbedTextsRequest.vector_type
