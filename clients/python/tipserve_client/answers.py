"""What the service answers, as NumPy arrays.

Shape legend: H W pixels of the picture, h w patch grid, D width of the embeddings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tipserve_client.errors import TipserveError

FloatArray = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEmbedding:
    """What was asked for of one picture; the rest is None.

    Attributes:
        cls1: Global embedding that learnt from web captions, [D].
        cls2: Global embedding that learnt from descriptions of the whole scene, [D].
        patches: One embedding for each patch, [h, w, D].
        values: The value-path embeddings that zero-shot segmentation uses, [h, w, D].
    """

    cls1: FloatArray | None = None
    cls2: FloatArray | None = None
    patches: FloatArray | None = None
    values: FloatArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassArea:
    """Where one class is: its value in the mask, its name, colour, and share of the pixels."""

    label: int
    name: str
    color: str
    area_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """The mask of one picture.

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
    """How well one class fits a picture: its number from 1, its share among all, its cosine."""

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
        outputs: What can be read from a picture.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamItem(Generic[T]):
    """What a stream says of one picture: a value, or why there is none.

    Attributes:
        index: Its place in what was sent, from 0.
        value: The answer.
        error: Set where there is no answer; the stream goes on.
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
