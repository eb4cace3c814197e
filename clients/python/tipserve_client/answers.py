"""What the service answers, as NumPy arrays.

Shape legend: H W pixels of the image, h w patch grid, D width of the embeddings; `...` whatever
comes before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tipserve_client.errors import TipserveError

FloatArray = NDArray[np.float32]
HalfArray = NDArray[np.float16]
T = TypeVar("T")
VectorsT = TypeVar("VectorsT")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Int8Vectors:
    """Vectors along the last axis, with `dtype="int8"`: a byte for each element.

    Attributes:
        values: int8 [..., D], from -127 to 127.
        scales: float32 [...]: what the elements of each vector are to be multiplied by.
    """

    values: NDArray[np.int8]
    scales: FloatArray

    def to_float32(self) -> FloatArray:
        """The vectors, float32 [..., D]; no element is off by more than half of its scale."""
        return np.multiply(self.values, self.scales[..., None], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VectorsOfImage(Generic[VectorsT]):
    """What was asked for of one image, as the numbers that were asked for; the rest is None.

    Attributes:
        cls1: Global embedding that learnt from web captions, [D].
        cls2: Global embedding that learnt from descriptions of the whole scene, [D].
        patches: One embedding for each patch, [h, w, D].
        values: The value-path embeddings that zero-shot segmentation uses, [h, w, D].
    """

    cls1: VectorsT | None = None
    cls2: VectorsT | None = None
    patches: VectorsT | None = None
    values: VectorsT | None = None


class ImageEmbedding(VectorsOfImage[FloatArray]):
    """Of arrays of float32, which is the default."""

    __slots__ = ()


class HalfImageEmbedding(VectorsOfImage[HalfArray]):
    """Of arrays of float16, with `dtype="float16"`."""

    __slots__ = ()


class Int8ImageEmbedding(VectorsOfImage[Int8Vectors]):
    """Of `Int8Vectors`, with `dtype="int8"`."""

    __slots__ = ()


# By the `dtype` that was asked for.
EMBEDDINGS: Final[Mapping[str, type[VectorsOfImage[Any]]]] = {
    "float32": ImageEmbedding,
    "float16": HalfImageEmbedding,
    "int8": Int8ImageEmbedding,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassArea:
    """Where one class is: its value in the mask, its name, colour, and share of the pixels."""

    label: int
    name: str
    color: str
    area_share: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segmentation:
    """The mask of one image.

    Attributes:
        labels: uint16 [H, W]: k for the k-th class, 0 for background.
        scores: [H, W], the cosine of the winner; None where it was not asked for.
        classes: In the order of the request.
        background_share: Share of the pixels that are background.
    """

    labels: NDArray[np.uint16]
    scores: FloatArray | None
    classes: tuple[ClassArea, ...]
    background_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """How well one class fits an image: its number from 1, its share among all, its cosine."""

    label: int
    name: str
    probability: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A served model; sizes are in pixels.

    Attributes:
        name: To use in requests.
        embed_dim: Width of every embedding.
        patch_size: Side of a patch.
        native_size: Resolution that is used where a request names none.
        min_size: Smallest resolution.
        max_size: Largest resolution.
        size_multiple: Every resolution is a multiple of it.
        outputs: What can be read from an image.
        limits: What one request may hold, by the protocol's own names.
    """

    name: str
    embed_dim: int
    patch_size: int
    native_size: int
    min_size: int
    max_size: int
    size_multiple: int
    outputs: tuple[str, ...]
    limits: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item(Generic[T]):
    """What a stream, or a partial answer, says of one image or text: a value, or its error.

    Attributes:
        index: Its place in what was sent, from 0.
        value: The answer.
        error: Set where there is no answer; the others have theirs.
    """

    index: int
    value: T | None = None
    error: TipserveError | None = None

    def result(self) -> T:
        """The value.

        Raises:
            TipserveError: There is none.
        """
        if self.error is not None:
            raise self.error
        assert self.value is not None
        return self.value


def in_places(values: Mapping[int, T], errors: Mapping[int, TipserveError]) -> list[Item[T]]:
    """The items of a partial answer, in order; what has an error has no value."""
    good = {index: value for index, value in values.items() if index not in errors}
    return [
        Item(index=index, value=good.get(index), error=errors.get(index))
        for index in sorted({*good, *errors})
    ]
