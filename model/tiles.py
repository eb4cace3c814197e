"""Cut an image into small tiles, none of which crosses a patch centre.

An upsampled map is therefore bilinear inside a tile, and stays between its values at the tile's
four corners. Shapes: h patch rows or columns; A corners along one axis, B along the other;
T tiles; C values at their corners.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.intp]

# A tile's side in pixels is this times the cube root of pixels across x classes. Small tiles cost
# corners, which are evaluated for all classes; large tiles cost pixels on borders between classes.
SIDE_FACTOR: Final = 0.27
MIN_SIDE: Final = 8
MAX_SIDE: Final = 32


def tile_side(num_pixels: int, num_classes: int) -> float:
    """The side in pixels that was measured as fastest, for an image `num_pixels` across."""
    side = SIDE_FACTOR * float(np.cbrt(num_pixels * num_classes))
    return min(max(side, MIN_SIDE), MAX_SIDE)


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One axis of the image, cut into tiles between neighbouring corners.

    Attributes:
        weights_Ah: Interpolation weights of each corner; the outermost are outside the image.
        centres_A: The patch centre of each corner, if each is at one.
        first_A: First pixel at or after each corner.
        offsets: Position of each tile's first pixel: 0 at its first corner, 1 at its second.
        step: Distance between neighbouring pixels in the same unit.
    """

    weights_Ah: Floats
    centres_A: Ints | None
    first_A: Ints
    offsets: Floats
    step: np.float32

    @property
    def sides(self) -> Ints:
        """Pixels of each tile; the outermost may have none."""
        return np.diff(self.first_A)

    def at_corners(self, values_hC: Floats) -> Floats:
        """Values [..., A, C] at the corners, from those at patch centres, [..., h, C]."""
        if self.centres_A is not None:
            return values_hC.take(self.centres_A, axis=-2)
        return self.weights_Ah @ values_hC

    def part(self, top: int, num_tiles: int) -> "Axis":
        """`num_tiles` tiles from `top` on."""
        corners = slice(top, top + num_tiles + 1)
        return replace(
            self,
            weights_Ah=self.weights_Ah[corners],
            centres_A=None if self.centres_A is None else self.centres_A[corners],
            first_A=self.first_A[corners],
            offsets=self.offsets[top : top + num_tiles],
        )


@lru_cache(maxsize=64)
def cut_axis(num_centres: int, num_pixels: int, side: float) -> Axis:
    """Cut at patch centres, and between them into tiles of about `side` pixels."""
    parts = max(1, round(num_pixels / num_centres / side))
    # The unit is a tile; zero is the centre that would lie before the first.
    step = parts * num_centres / num_pixels
    positions = (np.arange(num_pixels) + 0.5) * step + parts / 2
    corners = np.arange(parts * (num_centres + 1) + 1)
    first_A = np.searchsorted(np.floor(positions), corners)
    centres = np.clip(corners / parts - 1, 0, num_centres - 1)
    weights_Ah = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(num_centres)))
    starts = positions[np.minimum(first_A[:-1], num_pixels - 1)]
    return Axis(
        weights_Ah=weights_Ah.astype(np.float32),
        centres_A=centres.astype(np.intp) if parts == 1 else None,
        first_A=first_A,
        offsets=(starts - corners[:-1]).astype(np.float32),
        step=np.float32(step),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Index, place and size of T tiles; the first axis is down, across.

    Attributes:
        index_2T: Index among the tiles of each axis.
        first_2T: Row and column of the first pixel.
        side_2T: Height and width in pixels.
        offset_2T: Position of the first pixel in the tile, from 0 to 1.
        step_2: Distance between neighbouring pixels.
    """

    index_2T: Ints
    first_2T: Ints
    side_2T: Ints
    offset_2T: Floats
    step_2: tuple[np.float32, np.float32]

    @classmethod
    def at(cls, index_2T: Ints, down: Axis, across: Axis) -> "Tiles":
        """The tiles at these rows and columns."""
        row_T, column_T = index_2T
        return cls(
            index_2T=index_2T,
            first_2T=np.stack([down.first_A[row_T], across.first_A[column_T]]),
            side_2T=np.stack([down.sides[row_T], across.sides[column_T]]),
            offset_2T=np.stack([down.offsets[row_T], across.offsets[column_T]]),
            step_2=(down.step, across.step),
        )

    def __len__(self) -> int:
        return len(self.index_2T[0])

    def take(self, order_T: Ints) -> "Tiles":
        """The same tiles in another order."""
        return replace(
            self,
            index_2T=self.index_2T[:, order_T],
            first_2T=self.first_2T[:, order_T],
            side_2T=self.side_2T[:, order_T],
            offset_2T=self.offset_2T[:, order_T],
        )

    def corner_indices(self, num_across: int) -> Ints:
        """Flat indices [4, T] among A x B corners: top left, top right, bottom left and right."""
        first_T = self.index_2T[0] * num_across + self.index_2T[1]
        corner_4T: Ints = first_T + np.array([[0], [1], [num_across], [num_across + 1]])
        return corner_4T

    def planes(self, corners_4C: Floats, tile_C: Ints) -> Floats:
        """Coefficients [C, 4] of 1, x, y and x * y, in pixels from the first pixel of a tile.

        Args:
            corners_4C: Values at the corners, in the order of `corner_indices`.
            tile_C: Tile of each column of corners.
        """
        top_left, top_right, bottom_left, bottom_right = corners_4C
        y, x = self.offset_2T[:, tile_C]
        step_y, step_x = self.step_2
        across, down = top_right - top_left, bottom_left - top_left
        both = bottom_right - bottom_left - across
        first = top_left + across * x + (down + both * x) * y
        slopes = (across + both * y) * step_x, (down + both * x) * step_y, both * (step_y * step_x)
        return np.stack([first, *slopes], axis=1)

    def write(self, blocks_Tyx: NDArray[np.generic], image_HW: NDArray[np.generic]) -> None:
        """Write a block of pixels into each tile, cropped to the tile.

        There are few different sizes, so all tiles of one size are written in one step.
        """
        (all_rows, all_columns), strides = image_HW.shape, image_HW.strides
        size_T = self.side_2T[0] << 16 | self.side_2T[1]
        for size in np.unique(size_T).tolist():
            chosen = np.flatnonzero(size_T == size)
            height, width = size >> 16, size & 0xFFFF
            # As NumPy's `sliding_window_view`, which takes as long as the rest.
            shape = (all_rows - height + 1, all_columns - width + 1, height, width)
            windows = np.ndarray(shape, image_HW.dtype, image_HW, 0, 2 * strides)
            top, left = self.first_2T[:, chosen]
            windows[top, left] = blocks_Tyx[chosen, :height, :width]
