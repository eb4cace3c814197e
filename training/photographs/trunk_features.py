"""Cells of the frozen trunk under each drawing of a view scene, computed pass by pass and kept.

Shapes: n cells, F = 1280 features, S side of a scene, h w cells of the fine grid, H W pixels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from model.cell_encoder import TwoScales
from model.efficientnet_lite import STRIDE
from training.data.array_record import ArrayRecord
from training.photographs.scenes import ViewSource
from training.pretrained.compiled import compile_for_images

_PER_OBJECT = 8
_MIN_COVERED = 0.5
# A network's two grids of one image: fine [F, h, w] and coarse [F, h, w], scaled to the fine one.
Grids = tuple[NDArray[np.float32], NDArray[np.float32]]
RunTrunk = Callable[[NDArray[np.uint8]], Grids]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells(ArrayRecord):
    """Cells and what they show.

    Attributes:
        cells_n2F: float16; of the image, and of the image at half its size at the same place.
        name_n: Index of the name.
    """

    cells_n2F: NDArray[np.float16]
    name_n: NDArray[np.int64]

    def where(self, is_chosen_n: NDArray[np.bool_]) -> Self:
        """The cells that are marked."""
        return replace(self, cells_n2F=self.cells_n2F[is_chosen_n], name_n=self.name_n[is_chosen_n])


def compile_trunk(trunk: nn.Module, size: int) -> RunTrunk:
    """The trunk at both scales in OpenVINO, on one thread, for square images of one size."""
    return compile_scales(TwoScales(trunk), size)


def compile_scales(scales: nn.Module, size: int) -> RunTrunk:
    """Likewise a network that gives two grids of an image."""
    return cast("RunTrunk", compile_for_images(scales, size))


def covered_cells(
    mask_SS: NDArray[np.int32], rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Some cells (row, column, name) of each object; the best one where it covers none by half."""
    side = mask_SS.shape[0] // STRIDE
    found = []
    for value in np.unique(mask_SS[mask_SS > 0]):
        share_hw = cv2.resize(
            (mask_SS == value).astype(np.float32), (side, side), interpolation=cv2.INTER_AREA
        )
        inside = np.argwhere(share_hw >= min(_MIN_COVERED, float(share_hw.max())))
        chosen = rng.permutation(len(inside))[:_PER_OBJECT]
        found += [(int(row), int(column), int(value) - 1) for row, column in inside[chosen]]
    return found


def collect_cells(scenes: Iterable[tuple[Grids, NDArray[np.int32], np.random.Generator]]) -> Cells:
    """Cells of the objects of several scenes, from their grids and masks."""
    cells, names = [], []
    for grids, mask_SS, rng in scenes:
        for row, column, name in covered_cells(mask_SS, rng):
            cells.append(np.stack([grid_Fhw[:, row, column] for grid_Fhw in grids]))
            names.append(name)
    return Cells(cells_n2F=np.stack(cells).astype(np.float16), name_n=np.asarray(names))


def compute_pass(source: ViewSource, run: RunTrunk, number: int) -> Cells:
    """Cells of pass `number` over all drawings."""
    first = number * source.scenes_per_pass
    indices = range(first, first + source.scenes_per_pass)
    scenes = ((index, *source.scene(index)) for index in indices)
    return collect_cells(
        (run(pixels_SS3), mask_SS, np.random.default_rng(index))
        for index, pixels_SS3, mask_SS in scenes
    )
