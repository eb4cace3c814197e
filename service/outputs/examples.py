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


@dataclass(frozen=True, slots=True, eq=False)
class PatchMap:
    """Patches of an image and their places.

    Attributes:
        parts: Patch embeddings [N, D] of the whole image, or of each window.
        geometry: Sizes, with those of the image itself.
    """

    parts: Sequence[FloatArray]
    geometry: Geometry

    def centres(self) -> tuple[Floats, Floats, tuple[float, float]]:
        """Rows and columns of the centres of all patches, and a patch's size, in image pixels."""
        (height, width), (scaled_height, scaled_width) = (
            self.geometry.size_hw,
            self.geometry.scaled_hw,
        )
        rows, columns = self.geometry.grid_hw
        windows = self.geometry.windows
        side_hw = self.geometry.scaled_hw if windows is None else (windows.side, windows.side)
        corners = [(0, 0)] if windows is None else windows.corners(self.geometry.scaled_hw)
        patch_hw = side_hw[0] / rows, side_hw[1] / columns
        y_hw, x_hw = np.mgrid[:rows, :columns] + 0.5
        scale_y, scale_x = height / scaled_height, width / scaled_width
        y_N = np.concatenate([(top + y_hw.ravel() * patch_hw[0]) for top, _ in corners]) * scale_y
        x_N = np.concatenate([(left + x_hw.ravel() * patch_hw[1]) for _, left in corners]) * scale_x
        return y_N, x_N, (patch_hw[0] * scale_y, patch_hw[1] * scale_x)

    def mean(self, example: ClassExample, param: str) -> FloatArray:
        """Mean unit vector [D] of the patches of an example.

        Raises:
            InvalidRequest: It is outside the image, or contains no patch.
        """
        is_chosen_N = self._chosen(example, param)
        unit_ND = l2_normalize(np.concatenate(self.parts)[is_chosen_N])
        mean_D: FloatArray = unit_ND.mean(axis=0)
        return mean_D

    def _chosen(self, example: ClassExample, param: str) -> NDArray[np.bool_]:
        y_N, x_N, patch_hw = self.centres()
        height, width = self.geometry.size_hw
        if example.mask is not None:
            return self._under(example.mask, y_N, x_N, f"{param}.mask")
        if example.point is not None:
            x, y = example.point
            if not (0 <= x < width and 0 <= y < height):
                raise _outside(f"{param}.point", (height, width))
            return _around(y_N - y, x_N - x, patch_hw)
        if example.box is None:
            return np.ones(len(y_N), np.bool_)
        left, top, box_width, box_height = example.box
        right, bottom = left + box_width, top + box_height
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise _outside(f"{param}.box", (height, width))
        is_inside_N = (left <= x_N) & (x_N < right) & (top <= y_N) & (y_N < bottom)
        if is_inside_N.any():
            return is_inside_N
        # A box between the centres of patches stands for the patch around its own centre.
        return _around(y_N - (top + bottom) / 2, x_N - (left + right) / 2, patch_hw)

    def _under(self, mask: RunLengths, y_N: Floats, x_N: Floats, param: str) -> NDArray[np.bool_]:
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
        place_N = x_N.astype(np.int64) * height + y_N.astype(np.int64)
        is_inside_N: NDArray[np.bool_] = (
            np.searchsorted(counts.cumsum(), place_N, side="right") % 2 == 1
        )
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


def _around(y_N: Floats, x_N: Floats, patch_hw: tuple[float, float]) -> NDArray[np.bool_]:
    """The patch, or in windows the patches, that contain a point; from centres relative to it."""
    # The nearest one always counts: rounding must not leave a point between two patches.
    distance_N = np.maximum(np.abs(y_N) / patch_hw[0], np.abs(x_N) / patch_hw[1])
    is_around_N: NDArray[np.bool_] = distance_N < 0.5
    is_around_N[distance_N.argmin()] = True
    return is_around_N


def _outside(param: str, size_hw: tuple[int, int]) -> InvalidRequest:
    return InvalidRequest(
        f"{param} is not within the image, which has {size_hw[1]} x {size_hw[0]} pixels.",
        param=param,
    )
