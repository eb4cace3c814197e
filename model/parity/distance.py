"""Measure how outputs differ from the reference: embeddings, masks and dense maps.

Shapes: B batch, N patches, D embedding width, K classes, H W pixels or rows and columns of a map.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.segmentation import cosine_map, l2_normalize, segment, upsample_bilinear
from model.winner_map import Labels

FloatArray = NDArray[np.float32]
# If the best two cosines differ by less, either class is a good answer.
CLEAR_MARGIN = 0.01


class ParityError(ValueError):
    """An exported graph does not compute what the model computes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceMask:
    """The mask of one image.

    Attributes:
        labels_HW: Labels as segmentation returns them.
        clear_HW: Pixels whose best cosine is at least `CLEAR_MARGIN` above the second.
    """

    labels_HW: Labels
    clear_HW: NDArray[np.bool_]


def reference_mask(
    features_ND: FloatArray,
    classes_KD: FloatArray,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> ReferenceMask:
    """Segment an image, and find the pixels with a clear winner."""
    cosine_KHW = upsample_bilinear(cosine_map(features_ND, classes_KD, grid_hw), size_hw)
    second_HW, best_HW = np.partition(cosine_KHW, (-2, -1), axis=0)[-2:]
    return ReferenceMask(
        labels_HW=mask(features_ND, classes_KD, grid_hw, size_hw),
        clear_HW=best_HW - second_HW >= CLEAR_MARGIN,
    )


def mask(
    features_ND: FloatArray,
    classes_KD: FloatArray,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> Labels:
    """Labels [H, W], computed by the code that serves requests."""
    return segment(features_ND, classes_KD, grid_hw=grid_hw, size_hw=size_hw).labels_HW


@dataclass(slots=True)
class Agreement:
    """Counts of pixels with the same class, among all and among the clear ones."""

    pixels: int = 0
    same: int = 0
    clear: int = 0
    clear_same: int = 0

    def add(self, labels_HW: Labels, reference: ReferenceMask) -> None:
        """Count one mask."""
        same_HW = labels_HW == reference.labels_HW
        self.pixels += same_HW.size
        self.same += int(same_HW.sum())
        self.clear += int(reference.clear_HW.sum())
        self.clear_same += int((same_HW & reference.clear_HW).sum())

    @property
    def share(self) -> float | None:
        """Share of all pixels; None without pixels."""
        return self.same / self.pixels if self.pixels else None

    @property
    def clear_share(self) -> float | None:
        """Share of the clear pixels; None without any."""
        return self.clear_same / self.clear if self.clear else None


@dataclass(slots=True)
class Cosines:
    """Lowest and mean cosine between embeddings and the reference."""

    lowest: float | None = None
    total: float = 0.0
    count: int = 0

    def add(self, exported: FloatArray, reference: FloatArray) -> None:
        """Compare finite vectors on the last axis."""
        cosines = (l2_normalize(exported) * l2_normalize(reference)).sum(axis=-1)
        lowest = float(cosines.min())
        self.lowest = lowest if self.lowest is None else min(self.lowest, lowest)
        self.total += float(cosines.sum(dtype=np.float64))
        self.count += cosines.size

    @property
    def mean(self) -> float | None:
        """The mean; None before the first comparison."""
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class Distance:
    """The largest differences and the cosines seen so far.

    Attributes:
        is_finite: Whether all outputs are finite. An output that is not counts only here, since
            every comparison with NaN is false.
        max_relative_diff: Length of an embedding's difference by the embedding's own length; for
            dense maps, the largest difference by the map's root mean square.
        worst_size: Size of the input with that difference.
        max_length_error: Relative error of embeddings' lengths, to which cosines are blind.
    """

    is_finite: bool = True
    max_abs_diff: float = 0.0
    max_relative_diff: float = 0.0
    worst_size: tuple[int, ...] = ()
    max_length_error: float | None = None
    cls: Cosines = field(default_factory=Cosines)
    patches: Cosines = field(default_factory=Cosines)

    def add(self, exported: FloatArray, reference: FloatArray, size: tuple[int, ...]) -> bool:
        """Compare one dense map of one input of this size.

        Returns:
            Whether the exported output is finite; if not, skip further comparisons of it.

        Raises:
            ParityError: The shapes differ.
        """
        if not self._is_comparable(exported, reference, size):
            return False
        scale = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
        largest = float(np.abs(exported - reference).max())
        self._note(largest / max(scale, 1e-12), size)
        return True

    def add_embeddings(
        self, exported: FloatArray, reference: FloatArray, size: tuple[int, ...]
    ) -> bool:
        """Compare global [B, D] or patch [B, N, D] embeddings; see `add`."""
        if not self._is_comparable(exported, reference, size):
            return False
        (self.patches if exported.ndim == 3 else self.cls).add(exported, reference)
        ours, theirs, apart = (
            np.linalg.norm(x, axis=-1) for x in (exported, reference, exported - reference)
        )
        floor = np.maximum(theirs, 1e-12)
        self._note(float((apart / floor).max()), size)
        error = float((np.abs(ours - theirs) / floor).max())
        self.max_length_error = max(self.max_length_error or 0.0, error)
        return True

    def _is_comparable(
        self, exported: FloatArray, reference: FloatArray, size: tuple[int, ...]
    ) -> bool:
        if exported.shape != reference.shape:
            raise ParityError(f"shape {list(exported.shape)} instead of {list(reference.shape)}")
        if not np.isfinite(exported).all():
            self.is_finite, self.worst_size = False, size
            return False
        largest = float(np.abs(exported - reference).max())
        self.max_abs_diff = max(self.max_abs_diff, largest)
        return True

    def _note(self, relative: float, size: tuple[int, ...]) -> None:
        if self.is_finite and relative >= self.max_relative_diff:
            self.max_relative_diff, self.worst_size = relative, size


@dataclass(slots=True)
class Mean:
    """Mean over the numbers of many arrays."""

    total: float = 0.0
    count: int = 0

    def add(self, values: NDArray[np.floating]) -> None:
        """Add every number."""
        self.total += float(values.sum(dtype=np.float64))
        self.count += values.size

    @property
    def value(self) -> float | None:
        """The mean; None without numbers."""
        return self.total / self.count if self.count else None


def depth_errors(exported_BHW: FloatArray, reference_BHW: FloatArray) -> FloatArray:
    """Relative errors of depths in metres."""
    errors: FloatArray = np.abs(exported_BHW - reference_BHW) / np.maximum(reference_BHW, 1e-3)
    return errors


def normal_angles(exported_B3HW: FloatArray, reference_B3HW: FloatArray) -> NDArray[np.float64]:
    """Angles [B, H, W] in degrees between vectors of any length."""
    # From the chord, in float64: an arc cosine near one loses half of the digits.
    exported, reference = (
        np.moveaxis(vectors.astype(np.float64), 1, -1)
        for vectors in (exported_B3HW, reference_B3HW)
    )
    units = [
        vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        for vectors in (exported, reference)
    ]
    chord = np.linalg.norm(units[0] - units[1], axis=-1)
    angles: NDArray[np.float64] = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
    return angles
