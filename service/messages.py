"""Requests and responses of the data plane: frozen dataclasses that know no wire format."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import MapTask
from model.package import Manifest, ParityEntry
from model.preprocess import Fit
from model.winner_map import Labels
from service.errors import ServiceError

# Requests and answers, free of any wire format. Every default of the API is decided here, once.
#
# Request classes have no slots on purpose: `EmbedImagesRequest.normalize` is the default that both
# transports quote. Shape legend: B images, H W pixels of an image, h w patch grid, D width,
# T texts.

FloatArray = NDArray[np.float32]
Features = Literal["values", "patches"]
TemplateSet = Literal["none", "tcl"]
ImageOutput = Literal["patches", "values", "cls1", "cls2"]
MapSize = Literal["image", "model"]
SegmentMode = Literal["whole", "slide"]
VectorType = Literal["float32", "float16", "int8"]
# An encoded image; or its pixels, uint8 [H, W, 3], upright RGB; or what the model is to see,
# float32 [3, H, W] in [0, 1], of a size that it takes.
ImageInput = bytes | NDArray[np.uint8] | NDArray[np.float32]
# Of a `partial` request also why there is no image.
MaybeImage = ImageInput | ServiceError
MaybeEncoded = bytes | ServiceError
# What is wrong with single items of a `partial` request, by their place in it.
ItemErrors = Mapping[int, ServiceError]
PARITY_FIELDS: Final = (
    "file",
    "precision",
    "reference",
    "max_abs_diff",
    "min_cosine_cls",
    "min_cosine_patches",
    "mask_agreement",
)
TEXT_TEMPLATES: TemplateSet = "none"
IMAGE_OUTPUTS: tuple[ImageOutput, ...] = get_args(ImageOutput)
MAP_TASKS: tuple[MapTask, ...] = get_args(MapTask)


@dataclass(frozen=True, kw_only=True)
class EmbedImagesRequest:
    """Images to embed.

    Attributes:
        images: Encoded images, or pixels. What is as the model is to see it is taken so: it knows
            neither `resolution` nor `fit`.
        model: Name of a served model; None is the default model.
        outputs: Some of `IMAGE_OUTPUTS`; checked by the data plane.
        normalize: Whether every embedding has unit length.
        resolution: Short side in pixels; None is the model's native size.
        fit: How an image is brought to the resolution.
        vector_type: As what numbers they are sent.
        partial: Whether images that cannot be read leave the others their answers.
    """

    images: tuple[MaybeImage, ...]
    model: str | None = None
    outputs: tuple[str, ...] = ("cls1",)
    normalize: bool = True
    resolution: int | None = None
    fit: Fit = "squash"
    vector_type: VectorType = "float32"
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedImagesResponse:
    """For each image its outputs by name: patches and values [h, w, D], cls1 and cls2 [D].

    Attributes:
        model: Which answered.
        embeddings: Of the images that have no error, in order; of the type that was asked for.
        scales: The same without their last axis, for int8 only: an element times its row's scale is
            what it stands for.
        errors: By the place of the image.
    """

    model: str
    embeddings: tuple[dict[str, NDArray[Any]], ...]
    scales: tuple[dict[str, FloatArray], ...] = ()
    errors: ItemErrors = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EmbedTextsRequest:
    """Texts to embed, each put into every template and averaged."""

    texts: tuple[str, ...]
    model: str | None = None
    templates: TemplateSet | tuple[str, ...] = TEXT_TEMPLATES
    normalize: bool = True
    vector_type: VectorType = "float32"
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedTextsResponse:
    """One row for each text that has no error, in the order of the request; scales as above."""

    model: str
    embeddings_TD: NDArray[Any]
    scales_T: FloatArray | None = None
    errors: ItemErrors = field(default_factory=dict)

    def in_places(self) -> tuple[NDArray[Any], FloatArray | None]:
        """Rows and scales of all texts of the request, with zeros where there is an error."""
        if not self.errors:
            return self.embeddings_TD, self.scales_T
        num_texts = len(self.embeddings_TD) + len(self.errors)
        good = [index for index in range(num_texts) if index not in self.errors]
        rows_TD = np.zeros((num_texts, self.embeddings_TD.shape[1]), self.embeddings_TD.dtype)
        rows_TD[good] = self.embeddings_TD
        if self.scales_T is None:
            return rows_TD, None
        scales_T = np.zeros(num_texts, np.float32)
        scales_T[good] = self.scales_T
        return rows_TD, scales_T


@dataclass(frozen=True, kw_only=True)
class EmbedMixedRequest:
    """Images and texts of one request, let in together, each for one embedding to compare.

    Attributes:
        images: Encoded images; of each its `cls1`.
        texts: As they are, in no template.
        model: Name of a served model; None is the default model.
        dimensions: How many of the first elements are kept; None is all.
        resolution: Short side in pixels; None is the model's native size.
        fit: How an image is brought to the resolution.
    """

    images: tuple[MaybeEncoded, ...] = ()
    texts: tuple[str, ...] = ()
    model: str | None = None
    dimensions: int | None = None
    resolution: int | None = None
    fit: Fit = EmbedImagesRequest.fit


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedMixedResponse:
    """Rows of unit length, in the order of the request.

    Attributes:
        model: Which answered.
        images_BD: One row for each image.
        texts_TD: One row for each text.
        num_patches: That the model saw of the images.
        num_tokens: That the model read of the texts.
    """

    model: str
    images_BD: FloatArray
    texts_TD: FloatArray
    num_patches: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentClass:
    """One thing to look for; without prompts its name is the prompt."""

    name: str
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SegmentImagesRequest:
    """Images and the classes to find in them.

    Attributes:
        images: Encoded images.
        classes: The k-th has the value k in the mask, from 1.
        model: Name of a served model; None is the default model.
        templates: None is what the model's manifest chose.
        features: None is what the model's manifest chose.
        resolution: Short side in pixels; None is the model's native size.
        fit: How an image is brought to the resolution.
        background_threshold: Score under which a pixel is background; None is never.
        background_classes: Things that count as background where they win.
        include_scores: Whether the winner's score is sent for every pixel.
        mode: Whether the model sees the whole image at once, where scores are cosines; or windows
            of it, where they are mean probabilities.
        partial: Whether images that cannot be read leave the others their answers.
    """

    images: tuple[MaybeEncoded, ...]
    classes: tuple[SegmentClass, ...]
    model: str | None = None
    templates: TemplateSet | tuple[str, ...] | None = None
    features: Features | None = None
    resolution: int | None = None
    fit: Fit = "aspect"
    background_threshold: float | None = None
    background_classes: tuple[SegmentClass, ...] = ()
    include_scores: bool = False
    mode: SegmentMode = "whole"
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """The mask of one image.

    Attributes:
        labels_HW: k for the k-th class, 0 for background. The image's size, upright. uint8 or
            uint16, whichever is large enough.
        scores_HW: Of the best class or background class; None where it was not asked for.
        area_shares: Share of all pixels for the background and then each class.
    """

    labels_HW: Labels
    scores_HW: FloatArray | None
    area_shares: tuple[float, ...]

    @property
    def wire_labels(self) -> NDArray[np.uint16]:
        """The labels as answers have them, however many classes there are."""
        return self.labels_HW.astype(np.uint16, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentImagesResponse:
    """One segmentation for each image that has no error, in the order of the request."""

    model: str
    classes: tuple[str, ...]
    segmentations: tuple[Segmentation, ...]
    errors: ItemErrors = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EstimateMapsRequest:
    """Images to say something of at every pixel.

    Attributes:
        task: Which dense head is to say it.
        images: Encoded images.
        model: Name of a served model; None is the default model.
        resolution: Short side in pixels; None is the model's native size.
        fit: How an image is brought to the resolution.
        size: Whether a map has its image's size or the head's own.
        partial: Whether images that cannot be read leave the others their answers.
    """

    task: MapTask
    images: tuple[MaybeEncoded, ...]
    model: str | None = None
    resolution: int | None = None
    fit: Fit = "aspect"
    size: MapSize = "image"
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateMapsResponse:
    """One map for each image: depth in metres [H, W], or normals of unit length [H, W, 3].

    Images with an error have none.
    """

    model: str
    maps: tuple[FloatArray, ...]
    errors: ItemErrors = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What one request may hold.

    Classes include background classes; pixels are counted as the image's header declares them.
    """

    max_images: int
    max_texts: int
    max_classes: int
    max_image_bytes: int
    max_image_pixels: int
    max_request_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketLimits:
    """A shape of images that was measured at the start.

    Attributes:
        height: In pixels, as the model sees it.
        width: In pixels.
        max_batch_images: Images that one batch may hold.
        run_s: Seconds that one image takes on one lane.
        peak_bytes: Memory that one image takes beside the weights; None where it is not known.
    """

    height: int
    width: int
    max_batch_images: int
    run_s: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is told about a served model.

    Attributes:
        manifest: The package's own.
        runtime: What computes.
        precision: Of the arithmetic.
        device: Where it computes.
        runtime_reason: Why these were chosen, and what was passed over.
        limits: What one request may hold.
        buckets: Shapes that were measured at the start.
        tasks: Dense heads that the runtime computes.
        parity: How exact the graphs are that it computes by, as the package says.
        loaded_at: When it was loaded, in whole seconds since 1970.
    """

    manifest: Manifest
    runtime: str
    precision: str
    device: str = "cpu"
    runtime_reason: str = ""
    limits: RequestLimits
    buckets: tuple[BucketLimits, ...] = ()
    tasks: tuple[MapTask, ...] = ()
    parity: tuple[ParityEntry, ...] = ()
    loaded_at: int = field(default_factory=lambda: int(time.time()))

    @property
    def outputs(self) -> tuple[str, ...]:
        """What can be asked for: of the package's outputs those that are served."""
        served = {*IMAGE_OUTPUTS, "text", *self.tasks}
        return tuple(name for name in self.manifest.outputs if name in served)

    def scores(self) -> list[dict[str, Any]]:
        """The manifest's scores as plain values."""
        return [score.model_dump(mode="json") for score in self.manifest.scores]

    def parity_rows(self) -> list[dict[str, Any]]:
        """How exact each graph in use is, as plain values without what is not known."""
        rows = []
        for entry in self.parity:
            told = entry.model_dump(include=set(PARITY_FIELDS), exclude_none=True)
            rows.append({**told, "passed": entry.passed})
        return rows


# Requests and answers about what images show, their classes and their features; as `messages`.
#
# Shape legend: K classes, H W pixels.

GlobalFeatures = Literal["cls1", "cls2"]
FeatureKind = Literal["colors", "component", "groups"]
FeatureScope = Literal["image", "request"]


@dataclass(frozen=True, kw_only=True)
class ClassifyImagesRequest:
    """Images and the classes of which each shows one.

    Attributes:
        images: Encoded images.
        classes: The k-th has the label k, from 1.
        model: Name of a served model; None is the default model.
        templates: None is what the model's manifest chose.
        features: Which global embedding is compared.
        temperature: What cosines are divided by; None is what the model learnt.
        top_k: How many of the best classes are sent; None is all.
        resolution: Short side in pixels; None is the model's native size.
        fit: How an image is brought to the resolution.
        partial: Whether images that cannot be read leave the others their answers.
    """

    images: tuple[MaybeEncoded, ...]
    classes: tuple[SegmentClass, ...]
    model: str | None = None
    templates: TemplateSet | tuple[str, ...] | None = None
    features: GlobalFeatures = "cls1"
    temperature: float | None = None
    top_k: int | None = None
    resolution: int | None = None
    fit: Fit = "squash"
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The classes of one image, the best first: labels from 1, shares of all classes, cosines."""

    labels_K: NDArray[np.uint16]
    probabilities_K: FloatArray
    cosines_K: FloatArray

    def rows(self) -> Iterable[tuple[int, float, float]]:
        """Label, probability and cosine of each class."""
        columns = (self.labels_K, self.probabilities_K, self.cosines_K)
        return zip(*(column.tolist() for column in columns), strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyImagesResponse:
    """One classification for each image that has no error, in the order of the request."""

    model: str
    classes: tuple[str, ...]
    classifications: tuple[Classification, ...]
    errors: ItemErrors = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VisualizeFeaturesRequest:
    """Images whose patch embeddings are to be made visible.

    Attributes:
        images: Encoded images.
        model: Name of a served model; None is the default model.
        kind: Colours, the first component, or groups of patches that are alike.
        features: Which embeddings.
        scope: Whether components and groups are of each image or of all together.
        group_count: From 2 to 20; None is six. Only for groups.
        seed: Of the first centres of groups; None is 0. Only for groups.
        resolution: Short side in pixels; None is the model's native size.
        fit: How an image is brought to the resolution.
        size: Whether a map has its image's size or one element for each patch.
        partial: Whether images that cannot be read leave the others their answers.
    """

    images: tuple[MaybeEncoded, ...]
    model: str | None = None
    kind: FeatureKind = "colors"
    features: Features = "patches"
    scope: FeatureScope = "image"
    group_count: int | None = None
    seed: int | None = None
    resolution: int | None = None
    fit: Fit = "aspect"
    size: MapSize = "image"
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualizeFeaturesResponse:
    """One map for each image that has no error, in the order of the request.

    Colours are float32 [H, W, 3] and components float32 [H, W], from 0 to 1; groups are uint16
    [H, W], from 1.
    """

    model: str
    maps: tuple[NDArray[Any], ...]
    errors: ItemErrors = field(default_factory=dict)


# What there is of each item that has no error, and the errors.
ListResponse = (
    EmbedImagesResponse
    | EmbedTextsResponse
    | SegmentImagesResponse
    | ClassifyImagesResponse
    | VisualizeFeaturesResponse
    | EstimateMapsResponse
)
