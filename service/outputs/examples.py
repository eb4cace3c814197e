"""Classes from examples: patches of an image instead of a text.

Shape legend: H W pixels of the image, N patches of a part, D width, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.segmentation import average_groups, l2_normalize
from service.errors import InvalidRequest
from service.messages import ClassExample, FloatArray, RunLengths, SegmentClass
from service.outputs.run_lengths import read_counts
from service.outputs.slide import Geometry

Floats = NDArray[np.float64]
# Whether a patch is chosen, [N].
Chosen = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class PatchMap:
    """Patches of an image and their places.

    Attributes:
        parts: Patch embeddings [N, D] of the whole image, or of each window.
        geometry: Sizes, with those of the image itself.
    """

    parts: Sequence[FloatArray]
    geometry: Geometry

    def centres(self) -> tuple[Floats, Floats]:
        """Row and column of the centres of all patches [N, 2], and a patch's size, in pixels."""
        windows, scaled_hw = self.geometry.windows, self.geometry.scaled_hw
        side_hw = scaled_hw if windows is None else (windows.side, windows.side)
        corners = [(0, 0)] if windows is None else windows.corners(scaled_hw)
        patch_2 = np.divide(side_hw, self.geometry.grid_hw)
        within_N2 = (np.indices(self.geometry.grid_hw).reshape(2, -1).T + 0.5) * patch_2
        scale_2 = np.divide(self.geometry.size_hw, scaled_hw)
        centre_N2 = np.concatenate([corner + within_N2 for corner in corners])
        return centre_N2 * scale_2, patch_2 * scale_2

    def mean(self, example: ClassExample, param: str) -> FloatArray:
        """Mean unit vector [D] of the patches of an example.

        Raises:
            InvalidRequest: It is outside the image, or contains no patch.
        """
        is_chosen_N = self._chosen(example, param)
        unit_ND = l2_normalize(np.concatenate(self.parts)[is_chosen_N])
        mean_D: FloatArray = unit_ND.mean(axis=0)
        return mean_D

    def _chosen(self, example: ClassExample, param: str) -> Chosen:
        centre_N2, patch_2 = self.centres()
        if example.mask is not None:
            return self._under(example.mask, centre_N2, f"{param}.mask")
        size_2 = np.array(self.geometry.size_hw)
        if example.point is not None:
            point_2 = np.array(example.point[::-1])
            if not ((point_2 >= 0) & (point_2 < size_2)).all():
                raise _outside(f"{param}.point", self.geometry.size_hw)
            return _around(centre_N2 - point_2, patch_2)
        if example.box is None:
            return np.ones(len(centre_N2), np.bool_)
        left, top, width, height = example.box
        begin_2, end_2 = np.array([top, left]), np.array([top + height, left + width])
        if not ((begin_2 >= 0) & (begin_2 < end_2) & (end_2 <= size_2)).all():
            raise _outside(f"{param}.box", self.geometry.size_hw)
        is_inside_N: Chosen = np.all((begin_2 <= centre_N2) & (centre_N2 < end_2), axis=1)
        if is_inside_N.any():
            return is_inside_N
        # A box between the centres of patches stands for the patch around its own centre.
        return _around(centre_N2 - (begin_2 + end_2) / 2, patch_2)

    def _under(self, mask: RunLengths, centre_N2: Floats, param: str) -> Chosen:
        height, width = self.geometry.size_hw
        try:
            counts = read_counts(mask.counts)
        except ValueError as error:
            raise InvalidRequest(f"{param}: {error}.", param=param) from error
        if mask.size_hw != (height, width) or counts.sum() != height * width:
            raise InvalidRequest(
                f"{param}: the run lengths are of {mask.size_hw[0]} x {mask.size_hw[1]} and "
                f"{counts.sum()} pixels; the image has {height} x {width}.",
                param=param,
            )
        place_N = centre_N2.astype(np.int64) @ np.array([1, height])
        is_inside_N: Chosen = np.searchsorted(counts.cumsum(), place_N, side="right") % 2 == 1
        if not is_inside_N.any():
            raise InvalidRequest(
                f"{param}: the mask contains the centre of no patch; give a larger one, a point, "
                "or a higher resolution.",
                param=param,
            )
        return is_inside_N


def example_embeddings(
    classes: Sequence[tuple[str, SegmentClass]], maps: Mapping[int, PatchMap]
) -> FloatArray:
    """One unit vector [K, D] for each class: the mean over its examples.

    Args:
        classes: Each with its field of the request, for errors.
        maps: Of the images, by index.

    Raises:
        InvalidRequest: An example is outside its image, or contains no patch.
    """
    mean_ED = np.stack(
        [
            maps[example.image].mean(example, f"{field}.examples[{index}]")
            for field, one in classes
            for index, example in enumerate(one.examples)
        ]
    )
    return average_groups(mean_ED, [len(one.examples) for _, one in classes])


def _around(offset_N2: Floats, patch_2: Floats) -> Chosen:
    """The patch, or in windows the patches, that contain a point; from centres relative to it."""
    # The nearest one always counts: rounding must not leave a point between two patches.
    distance_N = (np.abs(offset_N2) / patch_2).max(axis=1)
    is_around_N: Chosen = distance_N < 0.5
    is_around_N[distance_N.argmin()] = True
    return is_around_N


def _outside(param: str, size_hw: tuple[int, int]) -> InvalidRequest:
    return InvalidRequest(
        f"{param} is not within the image, which has {size_hw[1]} x {size_hw[0]} pixels.",
        param=param,
    )
