"""REST request bodies and options."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from model.dense_maps import MapTask
from model.preprocess import Fit
from service.messages import (
    IMAGE_OUTPUTS,
    TEXT_TEMPLATES,
    ClassifyImagesRequest,
    EmbedImagesRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    FeatureKind,
    Features,
    FeatureScope,
    GlobalFeatures,
    MapSize,
    MaybeEncoded,
    SegmentClass,
    SegmentImagesRequest,
    SegmentMode,
    TemplateSet,
    VectorType,
    VisualizeFeaturesRequest,
)

# What REST requests may say, as pydantic models that turn into messages.
#
# Defaults are quoted from the message classes. A field that is not listed is an error.

ImageInputs = tuple[MaybeEncoded, ...]
Encoding = Literal["list", "base64"]
MaskFormat = Literal["mask", "overlay", "rle", "rle_counts", "polygons"]
DepthFormat = Literal["millimetres", "colors"]
COCO_FORMATS = frozenset({"rle", "rle_counts", "polygons"})
# Tags in angle brackets are left out of the paths that errors name.
NAME_TAG, CLASS_TAG, SET_TAG, OWN_TAG = "<name>", "<class>", "<set>", "<own>"
TEMPLATE_SETS = ("none", "tcl")


class Schema(BaseModel):
    """Base of everything that comes in: values do not change, unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassBody(Schema):
    """A class with several prompts."""

    name: Annotated[str, Field(description="Name in the answer.")]
    prompts: Annotated[
        list[str], Field(description="Texts that mean this class; averaged. Empty: the name.")
    ] = []


def _one_known_name(value: object) -> object:
    """`templates=tcl` in a query arrives as a list of one."""
    if isinstance(value, list) and len(value) == 1 and value[0] in TEMPLATE_SETS:
        return value[0]
    return value


NamedClass = Annotated[
    Annotated[str, Tag(NAME_TAG)] | Annotated[ClassBody, Tag(CLASS_TAG)],
    Discriminator(lambda value: NAME_TAG if isinstance(value, str) else CLASS_TAG),
]
Templates = Annotated[
    Annotated[
        Annotated[TemplateSet, Tag(SET_TAG)] | Annotated[list[str], Tag(OWN_TAG)],
        Discriminator(lambda value: SET_TAG if isinstance(value, str) else OWN_TAG),
    ],
    BeforeValidator(_one_known_name),
]
FIT_TEXT = "`squash` to a square, or keep the `aspect` ratio."
MODEL_TEXT = "Name of a served model. Default: the first."
DTYPE_TEXT = (
    "As what numbers they are sent: `float32`, `float16`, or `int8` with a scale for each vector, "
    "its greatest magnitude over 127, by which its elements are to be multiplied."
)
TEMPLATES_TEXT = (
    "Prompts into which each text is put: `none`, `tcl`, or a list of your own, each with one `{}`."
)


class Options(Schema):
    """What may stand in a query, in form fields or in a JSON body alike."""

    comma_lists: ClassVar[frozenset[str]] = frozenset()
    plain_lists: ClassVar[frozenset[str]] = frozenset({"templates"})

    model: Annotated[str | None, Field(description="A served model. Default: the first.")] = None
    encoding: Annotated[
        Encoding,
        Field(description="Arrays in JSON: nested lists, or base64 with dtype and shape."),
    ] = "list"
    partial: Annotated[
        bool,
        Field(
            description="Whether what is wrong with single images or texts leaves the others "
            "their answers: 200, with `errors` beside `data`. As JSON and safetensors."
        ),
    ] = False


class ImageOptions(Options):
    """What all methods on images may be told."""

    resolution: Annotated[
        int | None,
        Field(description="Short side in pixels as the model sees it. Default: its native size."),
    ] = None


class EmbedImagesOptions(ImageOptions):
    """How to embed images."""

    comma_lists = frozenset({"outputs"})

    outputs: Annotated[
        list[str],
        Field(
            description="What to send.",
            json_schema_extra={"items": {"type": "string", "enum": list(IMAGE_OUTPUTS)}},
        ),
    ] = list(EmbedImagesRequest.outputs)
    normalize: Annotated[bool, Field(description="Whether every embedding has unit length.")] = (
        EmbedImagesRequest.normalize
    )
    fit: Annotated[Fit, Field(description=FIT_TEXT)] = EmbedImagesRequest.fit
    dtype: Annotated[VectorType, Field(description=DTYPE_TEXT)] = EmbedImagesRequest.vector_type

    def to_message(self, images: ImageInputs) -> EmbedImagesRequest:
        """The request for the data plane."""
        return EmbedImagesRequest(
            images=images,
            model=self.model,
            outputs=tuple(self.outputs),
            normalize=self.normalize,
            resolution=self.resolution,
            fit=self.fit,
            vector_type=self.dtype,
            partial=self.partial,
        )


class SegmentImagesOptions(ImageOptions):
    """What to find in images, and how."""

    comma_lists = frozenset({"classes", "background_classes"})

    classes: Annotated[
        list[NamedClass],
        Field(description="Names, or names with several prompts. The k-th is k in the mask."),
    ] = []
    background_classes: Annotated[
        list[NamedClass], Field(description="Things that count as background, 0 in the mask.")
    ] = []
    background_threshold: Annotated[
        float | None,
        Field(description="Score under which a pixel is background; see `mode`."),
    ] = None
    templates: Annotated[
        Templates | None, Field(description=TEMPLATES_TEXT + " Default: the model's choice.")
    ] = None
    features: Annotated[
        Features | None, Field(description="Which embeddings. Default: the model's choice.")
    ] = None
    fit: Annotated[Fit, Field(description=FIT_TEXT)] = SegmentImagesRequest.fit
    mode: Annotated[
        SegmentMode,
        Field(
            description="`whole`: the model sees the image at once, and scores are cosines. "
            "`slide`: it sees windows of its native size, which overlap by a quarter, on an image "
            "whose short side is the resolution; scores are probabilities, averaged over windows."
        ),
    ] = SegmentImagesRequest.mode
    include_scores: Annotated[
        bool,
        Field(
            description="Whether the winner's score is sent for every pixel. The masks of all "
            "images together have no more pixels than one image may have then, and than two "
            "images may have without."
        ),
    ] = SegmentImagesRequest.include_scores
    format: Annotated[
        MaskFormat,
        Field(
            description="`mask`: one array. `overlay`: a PNG, laid over the image. In JSON, for "
            "each class as COCO has it: `rle` (compressed), `rle_counts` (as numbers), `polygons`."
        ),
    ] = "mask"

    def to_message(self, images: ImageInputs) -> SegmentImagesRequest:
        """The request for the data plane."""
        return SegmentImagesRequest(
            images=images,
            classes=tuple(map(to_class, self.classes)),
            model=self.model,
            templates=None if self.templates is None else to_templates(self.templates),
            features=self.features,
            resolution=self.resolution,
            fit=self.fit,
            background_threshold=self.background_threshold,
            background_classes=tuple(map(to_class, self.background_classes)),
            include_scores=self.include_scores,
            mode=self.mode,
            partial=self.partial,
        )


class MapOptions(ImageOptions):
    """How to say something of every pixel; what is said is the route's `task`."""

    task: ClassVar[MapTask]

    fit: Annotated[Fit, Field(description=FIT_TEXT)] = EstimateMapsRequest.fit
    size: Annotated[
        MapSize,
        Field(
            description="Maps as large as the `image`, or as the `model` computes them: eight "
            "rows and columns for each patch."
        ),
    ] = EstimateMapsRequest.size

    def to_message(self, images: ImageInputs) -> EstimateMapsRequest:
        """The request for the data plane."""
        return EstimateMapsRequest(
            task=self.task,
            images=images,
            model=self.model,
            resolution=self.resolution,
            fit=self.fit,
            size=self.size,
            partial=self.partial,
        )


class DepthOptions(MapOptions):
    """How to estimate depth."""

    task = "depth"

    format: Annotated[
        DepthFormat | None,
        Field(
            description="Of a PNG. `millimetres`: 16-bit grey, 65535 also for what is farther. "
            "`colors`: from the nearest point, pale yellow, to the farthest, dark violet. "
            "Default: `millimetres`."
        ),
    ] = None


class NormalsOptions(MapOptions):
    """How to estimate surface normals."""

    task = "normals"


class ImageBody(Schema):
    """The images of a JSON body: one, or several."""

    image: Annotated[
        str | None,
        Field(
            description="One image: base64, a `data:` URI with base64, or, from hosts that the "
            "server allows, an `https:` URL."
        ),
    ] = None
    images: Annotated[list[str] | None, Field(description="Several images.")] = None


class EmbedImagesBody(EmbedImagesOptions, ImageBody):
    """Images to embed."""


class SegmentImagesBody(SegmentImagesOptions, ImageBody):
    """Images and what to find in them."""


class DepthBody(DepthOptions, ImageBody):
    """Images whose depth is wanted."""


class NormalsBody(NormalsOptions, ImageBody):
    """Images whose surface normals are wanted."""


class EmbedTextsBody(Options):
    """Texts to embed."""

    texts: Annotated[list[str], Field(description="At least one, none blank.")]
    templates: Annotated[Templates, Field(description=TEMPLATES_TEXT)] = TEXT_TEMPLATES
    normalize: Annotated[bool, Field(description="Whether every embedding has unit length.")] = (
        EmbedTextsRequest.normalize
    )
    dtype: Annotated[VectorType, Field(description=DTYPE_TEXT)] = EmbedTextsRequest.vector_type

    def to_message(self) -> EmbedTextsRequest:
        """The request for the data plane."""
        return EmbedTextsRequest(
            texts=tuple(self.texts),
            model=self.model,
            templates=to_templates(self.templates),
            normalize=self.normalize,
            vector_type=self.dtype,
            partial=self.partial,
        )


def to_class(value: str | ClassBody) -> SegmentClass:
    """A class for the data plane."""
    if isinstance(value, str):
        return SegmentClass(name=value)
    return SegmentClass(name=value.name, prompts=tuple(value.prompts))


def to_templates(value: TemplateSet | list[str]) -> TemplateSet | tuple[str, ...]:
    """Templates for the data plane."""
    return tuple(value) if isinstance(value, list) else value


# What REST requests may say about what images show: their classes, and their features.


class ClassifyImagesOptions(ImageOptions):
    """Which classes there are, and how images are compared with them."""

    comma_lists = frozenset({"classes"})

    classes: list[NamedClass] = Field(
        default_factory=list,
        description="Names, or names with several prompts. The k-th has the label k.",
    )
    templates: Annotated[
        Templates | None, Field(description=TEMPLATES_TEXT + " Default: the model's choice.")
    ] = None
    features: Annotated[
        GlobalFeatures,
        Field(
            description="Which global embedding: `cls1` learnt from web captions, `cls2` from "
            "descriptions of the whole scene."
        ),
    ] = ClassifyImagesRequest.features
    temperature: Annotated[
        float | None,
        Field(
            description="What cosines are divided by before the softmax. Default: what the model "
            "learnt."
        ),
    ] = ClassifyImagesRequest.temperature
    top_k: Annotated[
        int | None, Field(description="How many of the best classes are sent. Default: all.")
    ] = ClassifyImagesRequest.top_k
    fit: Annotated[Fit, Field(description=FIT_TEXT)] = ClassifyImagesRequest.fit

    def to_message(self, images: ImageInputs) -> ClassifyImagesRequest:
        """The request for the data plane."""
        return ClassifyImagesRequest(
            images=images,
            classes=tuple(map(to_class, self.classes)),
            model=self.model,
            templates=None if self.templates is None else to_templates(self.templates),
            features=self.features,
            temperature=self.temperature,
            top_k=self.top_k,
            resolution=self.resolution,
            fit=self.fit,
            partial=self.partial,
        )


class VisualizeFeaturesOptions(ImageOptions):
    """How patch embeddings are made visible."""

    kind: Annotated[
        FeatureKind,
        Field(
            description="`colors`: the three first principal components, whitened, as red, green "
            "and blue by `sigmoid(2 x)`. `component`: the first, from 0 for the least to 1 for the "
            "greatest. `groups`: patches that are alike, by k-means, numbered from 1 for the "
            "largest group."
        ),
    ] = VisualizeFeaturesRequest.kind
    features: Annotated[Features, Field(description="Which embeddings.")] = (
        VisualizeFeaturesRequest.features
    )
    scope: Annotated[
        FeatureScope,
        Field(
            description="Fit components and groups over each `image`, or once over all images of "
            "the `request`, so that colours and labels agree between images."
        ),
    ] = VisualizeFeaturesRequest.scope
    group_count: Annotated[
        int | None, Field(description="How many groups, from 2 to 20. Default: 6.")
    ] = VisualizeFeaturesRequest.group_count
    seed: Annotated[
        int | None,
        Field(
            description="Of the first centres of groups, from 0; the same request has the same "
            "answer. Default: 0."
        ),
    ] = VisualizeFeaturesRequest.seed
    fit: Annotated[Fit, Field(description=FIT_TEXT)] = VisualizeFeaturesRequest.fit
    size: Annotated[
        MapSize,
        Field(
            description="Maps as large as the `image`, or as the `model` has them: one element "
            "for each patch."
        ),
    ] = VisualizeFeaturesRequest.size

    def to_message(self, images: ImageInputs) -> VisualizeFeaturesRequest:
        """The request for the data plane."""
        return VisualizeFeaturesRequest(
            images=images,
            model=self.model,
            kind=self.kind,
            features=self.features,
            scope=self.scope,
            group_count=self.group_count,
            seed=self.seed,
            resolution=self.resolution,
            fit=self.fit,
            size=self.size,
            partial=self.partial,
        )


class ClassifyImagesBody(ClassifyImagesOptions, ImageBody):
    """Images and the classes that they may show."""


class VisualizeFeaturesBody(VisualizeFeaturesOptions, ImageBody):
    """Images whose features are to be seen."""
