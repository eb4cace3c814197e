"""Results of requests, as NumPy arrays.

Shape legend: H W pixels of the image, K classes, h w patch grid, D width of the embeddings, `...`
any leading dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tipserve_client import drawing
from tipserve_client.errors import TipserveError
from tipserve_client.images import ImageInput

if TYPE_CHECKING:
    from PIL.Image import Image

FloatArray = NDArray[np.float32]
HalfArray = NDArray[np.float16]
T = TypeVar("T")
VectorsT = TypeVar("VectorsT")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Int8Vectors:
    """Vectors along the last axis with one byte for each element, from `dtype="int8"`.

    Attributes:
        values: int8 [..., D], from -127 to 127.
        scales: float32 [...]: factor of each vector's elements.
    """

    values: NDArray[np.int8]
    scales: FloatArray

    def to_float32(self) -> FloatArray:
        """The vectors as float32 [..., D]; the error is at most half of the scale."""
        return np.multiply(self.values, self.scales[..., None], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VectorsOfImage(Generic[VectorsT]):
    """Embeddings and maps of one image; outputs that were not requested are None.

    Attributes:
        cls1: Global embedding, trained on web captions, [D].
        cls2: Global embedding, trained on descriptions of whole scenes, [D].
        patches: One embedding for each patch, [h, w, D].
        values: The value-path embeddings that zero-shot segmentation uses, [h, w, D].
        depth: Depth in metres, [8 h, 8 w].
        normals: Surface normals of unit length, [8 h, 8 w, 3].
        segmentation: Labels of the model's own classes from 1, [8 h, 8 w].
    """

    cls1: VectorsT | None = None
    cls2: VectorsT | None = None
    patches: VectorsT | None = None
    values: VectorsT | None = None
    depth: FloatArray | None = None
    normals: FloatArray | None = None
    segmentation: NDArray[np.uint16] | None = None


class ImageEmbedding(VectorsOfImage[FloatArray]):
    """Embeddings as float32 arrays, the default."""

    __slots__ = ()


class HalfImageEmbedding(VectorsOfImage[HalfArray]):
    """Embeddings as float16 arrays, from `dtype="float16"`."""

    __slots__ = ()


class Int8ImageEmbedding(VectorsOfImage[Int8Vectors]):
    """Embeddings as `Int8Vectors`, from `dtype="int8"`."""

    __slots__ = ()


# Limits that both protocols give, by REST's names, with those of gRPC.
LIMITS: Final[Mapping[str, str]] = {
    "max_images": "max_image_count",
    "max_texts": "max_text_count",
    "max_classes": "max_class_count",
    "max_image_bytes": "max_image_bytes",
    "max_image_pixels": "max_image_pixels",
    "max_request_bytes": "max_request_bytes",
}
# By the requested `dtype`.
EMBEDDINGS: Final[Mapping[str, type[VectorsOfImage[Any]]]] = {
    "float32": ImageEmbedding,
    "float16": HalfImageEmbedding,
    "int8": Int8ImageEmbedding,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassArea:
    """One class of a mask.

    Attributes:
        label: Value in the mask.
        name: As requested.
        color: In PNG masks of the server, `#rrggbb`.
        area_share: Share of the mask's pixels.
        score: Mean probability of the class over its pixels; 0 without a pixel.
        confidence: Probability that the mask is right, that is, has an IoU of 0.5 or more with the
            thing of this name; 0 without a pixel. None if the model cannot tell.
    """

    label: int
    name: str
    color: str
    area_share: float
    score: float
    confidence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A connected region of one class.

    Attributes:
        label: Label of the class.
        name: Name of the class.
        area: Number of pixels.
        box: Left, top, width and height, in pixels.
        score: Mean probability of the class over the pixels.
        size: Height and width of the mask.
        counts: Run lengths as compressed by COCO: pycocotools reads `size` and `counts`.
    """

    label: int
    name: str
    area: int
    box: tuple[int, int, int, int]
    score: float
    size: tuple[int, int]
    counts: str

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, in pixels."""
        left, top, width, height = self.box
        return left, top, left + width, top + height

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels, [H, W]."""
        height, width = self.size
        lengths = read_counts(self.counts)
        is_inside = np.arange(len(lengths)) % 2 == 1
        return np.repeat(is_inside, lengths).reshape(width, height).T

    @property
    def crop(self) -> NDArray[np.bool_]:
        """The pixels within the box."""
        left, top, right, bottom = self.xyxy
        return self.mask[top:bottom, left:right]


def read_counts(text: str) -> list[int]:
    """Run lengths from COCO's string: groups of five bits, differences from the fourth on."""
    lengths: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        group = character - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            if group & 0x10:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segmentation:
    """The mask of one image.

    Attributes:
        labels: uint16 [H, W]: k for the k-th class, 0 for background.
        scores: [H, W], cosine of the best class, from `include_scores=True`; else None.
        cosines: [K, H, W], cosine of every class, from `include_scores="all"`; else None.
        classes: In the order of the request.
        background_share: Share of the pixels that are background.
        instances: By class, then the largest first; empty if not requested.
    """

    labels: NDArray[np.uint16]
    scores: FloatArray | None
    classes: tuple[ClassArea, ...]
    background_share: float
    instances: tuple[Instance, ...] = ()
    cosines: FloatArray | None = None

    def overlay(
        self,
        image: ImageInput,
        *,
        opacity: float = drawing.OPACITY,
        outline_px: int = drawing.OUTLINE_PX,
    ) -> "Image":
        """Draw the classes over the image, as the server's `overlay` does. Needs Pillow.

        A class whose colour is close to the image below gets another one.

        Args:
            image: The one of the request. A mask of another size is scaled to it.
            opacity: Of the tint, 0 to 1. Background is darkened.
            outline_px: Width of the line within the edge of each region, which has a black line
                within; 0 is neither.

        Returns:
            PIL's image, RGB, which notebooks show; `save` writes it.
        """
        return drawing.overlay(self, image, opacity=opacity, outline_px=outline_px)

    def plot(self, image: ImageInput | None = None, axes: Any = None) -> Any:
        """Draw the mask with a legend. Needs matplotlib.

        Args:
            image: Is drawn below; needs Pillow.
            axes: Of matplotlib. Default: the current ones.

        Returns:
            The axes.
        """
        return drawing.plot(self, image, axes)

    def _repr_html_(self) -> str:
        """What notebooks show: the mask in colours, at most 512 pixels long, and a legend."""
        return drawing.to_html(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class of a classification: label from 1, probability among all classes, cosine."""

    label: int
    name: str
    probability: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A served model; sizes are in pixels.

    Attributes:
        name: For the field `model` of requests.
        variant: Architecture, such as `s14`.
        embed_dim: Width of every embedding.
        patch_size: Side of a patch.
        native_size: Default resolution.
        min_size: Smallest resolution.
        max_size: Largest resolution.
        size_multiple: Every resolution is a multiple of it.
        outputs: Arrays that can be computed for an image.
        runtime: What computes, such as `onnx`.
        precision: Number format of the computation, such as `fp32`.
        device: `cpu` or `gpu`.
        package_digest: SHA-256 of the model package; equal for equal weights.
        limits: Limits of one request: `max_images`, `max_texts`, `max_classes`,
            `max_image_bytes`, `max_image_pixels` and `max_request_bytes`.
    """

    name: str
    variant: str
    embed_dim: int
    patch_size: int
    native_size: int
    min_size: int
    max_size: int
    size_multiple: int
    outputs: tuple[str, ...]
    runtime: str
    precision: str
    device: str
    package_digest: str
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item(Generic[T]):
    """The value or the error of one image or text in a stream or a partial answer.

    Attributes:
        index: Index of the image or text in the request, from 0.
        value: The result; None if there is an error.
        error: Why there is no value. The other items are not affected.
    """

    index: int
    value: T | None = None
    error: TipserveError | None = None

    def result(self) -> T:
        """Return the value.

        Raises:
            TipserveError: The error of the item.
        """
        if self.error is not None:
            raise self.error
        assert self.value is not None
        return self.value


def read_fields(kind: type[T], source: Any, **given: Any) -> T:
    """A result with the fields of a message, or the members of JSON, of the same names.

    Args:
        kind: A dataclass.
        source: The message or the mapping.
        given: Fields that differ between the protocols.
    """
    read = source.__getitem__ if isinstance(source, Mapping) else partial(getattr, source)
    names: Any = fields(kind)  # type: ignore[arg-type]  # a dataclass
    return kind(**given, **{one.name: read(one.name) for one in names if one.name not in given})


def partial_items(values: Mapping[int, T], errors: Mapping[int, TipserveError]) -> list[Item[T]]:
    """The items of a partial answer, in order. An item with an error has no value."""
    good = {index: value for index, value in values.items() if index not in errors}
    return [
        Item(index=index, value=good.get(index), error=errors.get(index))
        for index in sorted({*good, *errors})
    ]
