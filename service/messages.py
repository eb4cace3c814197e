"""Requests and responses of the data plane: frozen dataclasses that know no wire format."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Annotated, Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import MapTask
from model.foreground import ForegroundFinder
from model.general_words import GeneralWords
from model.graphs import DenseTask
from model.manifest import Background, Manifest, ParityEntry, Quality
from model.preprocess import Fit
from model.winner_map import Labels
from service.errors import ServiceError

# Shape legend: B images, H W pixels of an image, h w patch grid, D width, T texts, K classes.
#
# Every default and fixed bound of the API is decided here, once. Request classes have no slots on
# purpose: `EmbedImagesRequest.normalize` is then the default that both transports quote.

FloatArray = NDArray[np.float32]
Features = Literal["values", "patches"]
GlobalFeatures = Literal["cls1", "cls2"]
FeatureKind = Literal["colors", "component", "groups"]
FeatureScope = Literal["image", "request"]
TemplateSet = Literal["none", "tcl"]
ImageOutput = Literal["patches", "values", "cls1", "cls2"]
MapSize = Literal["image", "model"]
MaskSize = Literal["image", "model", "patch"]
SegmentMode = Literal["whole", "slide"]
PromptPool = Literal["mean", "max"]
SegmentQuality = Quality
SegmentBackground = Background
Holes = Literal["fill", "keep"]
VectorType = Literal["float32", "float16", "int8"]
# Which tokens of a text that is too long are dropped; with NONE such a text is an error.
Truncation = Literal["NONE", "START", "END"]
# An encoded image; or its pixels, uint8 [H, W, 3], upright RGB; or the model's input, float32
# [3, H, W] in [0, 1], of a size that the model accepts.
ImageInput = bytes | NDArray[np.uint8] | NDArray[np.float32]
# In a `partial` request an image may be the reason why it could not be read.
MaybeImage = ImageInput | ServiceError
MaybeEncoded = bytes | ServiceError
# Errors of single items of a `partial` request, by index.
ItemErrors = Mapping[int, ServiceError]
# Of the manifest, in the description of a model.
MANIFEST_FIELDS: Final = (
    "variant", "embed_dim", "patch_size", "native_size", "min_size", "max_size", "size_multiple",
    "max_text_tokens", "licence",
)  # fmt: skip
PARITY_FIELDS: Final = (
    "file", "precision", "reference", "max_abs_diff", "min_cosine_cls", "min_cosine_patches",
    "mask_agreement",
)  # fmt: skip
TEXT_TEMPLATES: TemplateSet = "none"
IMAGE_OUTPUTS: tuple[ImageOutput, ...] = get_args(ImageOutput)


@dataclass(frozen=True, slots=True)
class Within:
    """Bounds of a field of a request, both allowed; see `service.validation.check_bounds`.

    Attributes:
        low: The least value.
        high: The largest value.
        text: What the error says after the field's name; of `low`, `high` and `value`.
    """

    low: float
    high: float
    text: str = "must be from {low} to {high}, not {value}"


LEAST_TEXT: Final = "must be at least {low}, not {value}"
COSINE_TEXT: Final = (
    "is a cosine from {low} to {high}, not {value}; include_scores returns the cosines of an image"
)


@dataclass(frozen=True, kw_only=True)
class ImagesRequest:
    """What every request about images has.

    Attributes:
        images: Encoded images; to embed also pixels or model inputs, to which `resolution` and
            `fit` do not apply.
        model: Name of a served model; None is the default model.
        resolution: Short side in pixels; None is the model's native size.
        fit: How an image is resized; None, of masks only, is `squash` for a head as released, and
            `aspect` for names.
        partial: Whether the other images are answered if some cannot be read.
    """

    images: tuple[MaybeImage, ...]
    model: str | None = None
    resolution: int | None = None
    fit: Fit | None = None
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListResponse:
    """What every response with a result per item has.

    Attributes:
        model: Name of the model that answered.
        errors: Of the items without a result, by index.
    """

    model: str
    errors: ItemErrors = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EmbedImagesRequest(ImagesRequest):
    """Images to embed.

    Attributes:
        outputs: Some of `IMAGE_OUTPUTS` and `DENSE_TASKS`, computed in one pass; checked by the
            data plane.
        normalize: Whether every embedding has unit length.
        vector_type: Number type of the embeddings; maps are float32.
    """

    fit: Fit = "squash"
    outputs: tuple[str, ...] = ("cls1",)
    normalize: bool = True
    vector_type: VectorType = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedImagesResponse(ListResponse):
    """For each image its outputs by name: patches and values [h, w, D], cls1 and cls2 [D].

    Maps have eight rows and columns for each patch: depth [h, w], normals [h, w, 3], and
    segmentation, uint16 [h, w], whose label k is the k-th class of the package.

    Attributes:
        embeddings: Of the images without an error, in order, in the requested number type.
        scales: For int8 only, one per row: an element times its row's scale is its value.
    """

    embeddings: tuple[dict[str, NDArray[Any]], ...]
    scales: tuple[dict[str, FloatArray], ...] = ()


@dataclass(frozen=True, kw_only=True)
class EmbedTextsRequest:
    """Texts to embed, each as the average over all templates."""

    texts: tuple[str, ...]
    model: str | None = None
    templates: TemplateSet | tuple[str, ...] = TEXT_TEMPLATES
    normalize: bool = True
    vector_type: VectorType = "float32"
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedTextsResponse(ListResponse):
    """One row per text without an error, in the order of the request; scales as above."""

    embeddings_TD: NDArray[Any]
    scales_T: FloatArray | None = None

    def in_places(self) -> tuple[NDArray[Any], FloatArray | None]:
        """Rows and scales of all texts of the request, with zeros where there is an error."""
        places = [index - before for before, index in enumerate(sorted(self.errors))]
        scales_T = None if self.scales_T is None else np.insert(self.scales_T, places, 0)
        return np.insert(self.embeddings_TD, places, 0, axis=0), scales_T


@dataclass(frozen=True, kw_only=True)
class EmbedMixedRequest(ImagesRequest):
    """Images, as `cls1`, and texts, admitted as one request; all embeddings are comparable.

    Attributes:
        texts: Embedded without a template.
        dimensions: Number of leading elements to keep; None is all.
        normalize: Whether every embedding has unit length.
        truncate: For texts longer than the model reads. None is END, for at most 2,000 characters.
    """

    images: tuple[MaybeImage, ...] = ()
    fit: Fit = "squash"
    texts: tuple[str, ...] = ()
    dimensions: int | None = None
    normalize: bool = True
    truncate: Truncation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedMixedResponse:
    """One row per image and one per text, and the number of patches and tokens of all."""

    model: str
    images_BD: FloatArray
    texts_TD: FloatArray
    num_patches: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLengths:
    """A mask as COCO's compressed run lengths, and its height and width."""

    size_hw: tuple[int, int]
    counts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassExample:
    """Patches that show a class. Without a point, box or mask it is the whole image.

    Attributes:
        image: Index in the images of the request.
        point: x and y in pixels of the image.
        box: Left, top, width and height in pixels of the image.
        mask: Of the image's size.
    """

    image: int = 0
    point: tuple[float, float] | None = None
    box: tuple[float, float, float, float] | None = None
    mask: RunLengths | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentClass:
    """A class to find: by examples, else by prompts; without either its name is the prompt.

    `pool` says whether a pixel is compared with the mean of the prompts, or with the best of them.
    """

    name: str
    prompts: tuple[str, ...] = ()
    pool: PromptPool = "mean"
    examples: tuple[ClassExample, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SegmentImagesRequest(ImagesRequest):
    """Images and the classes to find in them.

    Attributes:
        classes: The k-th has the value k in the mask, from 1. Only `model`, without prompts or
            examples: the classes of the package's segmentation head.
        templates: None is the manifest's choice.
        features: None is the manifest's choice.
        background_threshold: Pixels with a lower score, a cosine, are background; None sets no
            threshold.
        background_classes: Classes that count as background where they win.
        background: With `auto`, a pixel whose best class has a cosine far below that class's
            largest one in the image is background, and a class with small cosines everywhere is
            absent. None is `none` with a threshold, background classes or a head, else `auto` for
            one class and the manifest's choice for several.
        background_level: For `auto`, the cosine that a pixel needs, from 0 for the least to 1 for
            the largest of its class; None is the manifest's choice.
        quality: `published` scales cosines bilinearly, `fast` follows the image's colours, `fine`
            sees the image at a second size as well. None is the manifest's choice.
        include_scores: Whether to return the winner's score for every pixel.
        include_all_scores: Whether to return the cosine of every class for every pixel.
        include_class_scores: Whether to return the mean probability of each class.
        include_instances: Whether to return the connected regions of each class.
        min_area_share: Share of the mask's pixels that an instance has at least; smaller holes of
            instances are filled.
        holes: Whether an instance keeps the larger holes, or is all within its outer outline.
        size: Whether a mask has the size of its image, of the model's input, or a pixel a patch.
        mode: `whole` runs the model once; `slide` runs it on windows, and scores are the means over
            windows. None is the manifest's choice.
    """

    classes: tuple[SegmentClass, ...]
    templates: TemplateSet | tuple[str, ...] | None = None
    features: Features | None = None
    background_threshold: Annotated[float | None, Within(-1, 1, COSINE_TEXT)] = None
    background_classes: tuple[SegmentClass, ...] = ()
    background: SegmentBackground | None = None
    background_level: Annotated[float | None, Within(0, 1)] = None
    quality: SegmentQuality | None = None
    include_scores: bool = False
    include_all_scores: bool = False
    include_class_scores: bool = False
    include_instances: bool = False
    # With the lower bound an image has at most 10,000 instances.
    min_area_share: Annotated[float, Within(1e-4, 1)] = 0.001
    holes: Holes = "keep"
    size: MaskSize = "image"
    mode: SegmentMode | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instance:
    """Pixels of one class that are connected by edges.

    Attributes:
        label: Of its class, from 1.
        box: Left, top, width and height, in pixels.
        score: Mean probability of the class over the pixels.
        counts: Lengths of runs outside, inside, outside ... in columns, as in COCO.
    """

    label: int
    area: int
    box: tuple[int, int, int, int]
    score: float
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """The mask of one image.

    Attributes:
        labels_HW: k for the k-th class, 0 for background; uint8 if that suffices, else uint16. It
            has the requested size, by default that of the upright image.
        scores_HW: Cosine of the best class or background class; None if not requested.
        area_shares: Share of all pixels for the background and then each class.
        class_scores: Mean probability of each class over its pixels; 0 without a pixel. Empty if
            not requested.
        confidences: Probability that the mask of each class is right; 0 without a pixel. Empty if
            not requested or not known.
        instances: By class, then the largest first; empty if not requested.
        cosines_KHW: Cosine of every class, without background classes; None if not requested.
    """

    labels_HW: Labels
    scores_HW: FloatArray | None
    area_shares: tuple[float, ...]
    class_scores: tuple[float, ...] = ()
    confidences: tuple[float, ...] = ()
    instances: tuple[Instance, ...] = ()
    cosines_KHW: FloatArray | None = None

    @property
    def class_rows(self) -> Iterator[tuple[float, float, float | None]]:
        """Area share, score and confidence of each class; the last is None if it is not known."""
        known = self.confidences or repeat(None, len(self.class_scores))
        return zip(self.area_shares[1:], self.class_scores, known, strict=True)

    @property
    def wire_labels(self) -> NDArray[np.uint16]:
        """The labels as uint16, whatever the number of classes."""
        return self.labels_HW.astype(np.uint16, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentImagesResponse(ListResponse):
    """One segmentation per image without an error, in the order of the request."""

    classes: tuple[str, ...]
    segmentations: tuple[Segmentation, ...]


@dataclass(frozen=True, kw_only=True)
class EstimateMapsRequest(ImagesRequest):
    """Images for which a dense head predicts a value at every pixel.

    Attributes:
        task: The dense head.
        size: Whether a map has the size of its image or of the head's output.
    """

    fit: Fit = "squash"
    task: MapTask
    size: MapSize = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapsResponse(ListResponse):
    """One map per image without an error, in the order of the request.

    Depth is in metres, float32 [H, W]; normals have unit length, float32 [H, W, 3]. Of features,
    colours are float32 [H, W, 3] and components float32 [H, W], from 0 to 1; groups are uint16
    [H, W], from 1.
    """

    maps: tuple[NDArray[Any], ...]


MAX_IMAGES: Final = 32
MAX_TEXTS: Final = 2048
MAX_CLASSES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Limits of one request.

    Classes include background classes; pixels are counted as the image's header declares them.
    """

    max_images: int
    max_texts: int
    max_classes: int
    max_image_bytes: int
    max_image_pixels: int
    max_request_bytes: int
    max_answer_bytes: int
    max_work_memory_bytes: int

    @property
    def max_items(self) -> int:
        """Images, texts and classes together."""
        return self.max_images + self.max_texts + self.max_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketLimits:
    """An image shape that was measured when the model was loaded.

    Attributes:
        height: Of the model's input, in pixels.
        width: In pixels.
        max_batch_images: Most images in one batch.
        run_s: Time of one image on one lane, in seconds.
        peak_bytes: Memory of one image without the weights; None if unknown.
    """

    height: int
    width: int
    max_batch_images: int
    run_s: float
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Description of a served model.

    Attributes:
        precision: Precision of the arithmetic.
        device: `cpu` or `gpu`.
        runtime_reason: Why the runtime was chosen, and why others were not.
        tasks: Dense heads that the runtime computes.
        parity: The package's record of how exact the graphs in use are.
        words: None if the package has no general words.
        foreground: None if the package or the installation cannot find the foreground.
        loaded_at: Time of loading, in whole seconds since the epoch.
    """

    manifest: Manifest
    runtime: str
    precision: str
    device: str = "cpu"
    runtime_reason: str = ""
    limits: RequestLimits
    buckets: tuple[BucketLimits, ...] = ()
    tasks: tuple[DenseTask, ...] = ()
    parity: tuple[ParityEntry, ...] = ()
    words: GeneralWords | None = None
    foreground: ForegroundFinder | None = None
    loaded_at: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The package's outputs that are served."""
        served = {*IMAGE_OUTPUTS, "text", *self.tasks}
        return tuple(name for name in self.manifest.outputs if name in served)

    @cached_property
    def image_outputs(self) -> tuple[str, ...]:
        """Those of an image."""
        return tuple(name for name in self.outputs if name != "text")

    def scores(self) -> list[dict[str, Any]]:
        """The manifest's scores as plain values."""
        return [score.model_dump(mode="json") for score in self.manifest.scores]

    def parity_rows(self) -> list[dict[str, Any]]:
        """The parity of each graph in use as plain values, without those that are unknown."""
        rows = []
        for entry in self.parity:
            known = entry.model_dump(include=set(PARITY_FIELDS), exclude_none=True)
            rows.append({**known, "passed": entry.passed})
        return rows


@dataclass(frozen=True, kw_only=True)
class ClassifyImagesRequest(ImagesRequest):
    """Images to classify, and the classes.

    Attributes:
        classes: The k-th has the label k, from 1.
        templates: None is the manifest's choice.
        features: The global embedding to compare.
        temperature: Divisor of the cosines; None is the learned value.
        top_k: Number of best classes to return; None is all.
    """

    fit: Fit = "squash"
    classes: tuple[SegmentClass, ...]
    templates: TemplateSet | tuple[str, ...] | None = None
    features: GlobalFeatures = "cls1"
    # Below the bound the best class has all of the probability, whatever the other cosines are.
    temperature: Annotated[float | None, Within(1e-4, sys.float_info.max, LEAST_TEXT)] = None
    top_k: Annotated[int | None, Within(1, math.inf, LEAST_TEXT)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The classes of one image, best first: labels from 1, probabilities and cosines."""

    labels_K: NDArray[np.uint16]
    probabilities_K: FloatArray
    cosines_K: FloatArray

    def rows(self) -> Iterable[tuple[int, float, float]]:
        """Label, probability and cosine of each class."""
        columns = (self.labels_K, self.probabilities_K, self.cosines_K)
        return zip(*(column.tolist() for column in columns), strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyImagesResponse(ListResponse):
    """One classification per image without an error, in the order of the request."""

    classes: tuple[str, ...]
    classifications: tuple[Classification, ...]


@dataclass(frozen=True, kw_only=True)
class VisualizeFeaturesRequest(ImagesRequest):
    """Images whose patch embeddings to visualize.

    Attributes:
        kind: Colours, the first principal component, or groups of similar patches.
        features: The embeddings to use.
        scope: Whether components and groups are fitted to each image or to the whole request.
        group_count: None is 6. Only for groups.
        seed: Seed of the first group centres; None is 0. Only for groups.
        size: Whether a map has the size of its image or one element per patch.
    """

    fit: Fit = "aspect"
    kind: FeatureKind = "colors"
    features: Features = "patches"
    scope: FeatureScope = "image"
    group_count: Annotated[int | None, Within(2, 20)] = None
    seed: Annotated[int | None, Within(0, 2**31 - 1)] = None
    size: MapSize = "image"
