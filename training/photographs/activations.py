"""Scenes as the last layer before the trained part of the trunk sees them.

Shapes: n scenes, C channels, h w rows and columns of the fine grid, p points of a mask along a
side, S side of a scene, L labels, K names.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.efficientnet_lite import Trunk
from training.data.concepts import all_concepts
from training.photographs.scenes import Scene, withheld
from training.photographs.trunk_features import RunTrunk

# Blocks of the trunk that stay frozen; 112 channels with stride 16 go to the others.
NUM_FROZEN_BLOCKS = 11
POINT_PIXELS = 4


class LowerScales(nn.Module):
    """The frozen blocks of the trunk, on an image and on the same image at half its size."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.stem, self.blocks = trunk.stem, trunk.blocks[:NUM_FROZEN_BLOCKS]

    def forward(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B, C, H / 16, W / 16], and the same with half as many rows and columns."""
        return self._lower(pixels_B3HW), self._lower(F.avg_pool2d(pixels_B3HW, 2))

    def _lower(self, pixels_B3HW: Tensor) -> Tensor:
        x_BCHW: Tensor = F.relu6(self.stem((pixels_B3HW * 255.0 - 127.0) / 128.0))
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return x_BCHW


class Tail(nn.Module):
    """The blocks of the trunk that are trained, and its last convolution."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.blocks, self.head = trunk.blocks[NUM_FROZEN_BLOCKS:], trunk.head

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return cells [B, F, h, w]."""
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        cells_BFhw: Tensor = F.relu6(self.head(x_BCHW))
        return cells_BFhw


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Scenes of a part: float16 grids, and int16 labels of points, -1 for none.

    The coarse grid is of the scene at half its size.
    """

    fine_nChw: NDArray[np.float16]
    coarse_nChw: NDArray[np.float16]
    label_npp: NDArray[np.int16]

    @classmethod
    def of(cls, scenes: Iterable[Scene], run: RunTrunk) -> Self:
        """Compute them; masks have 0 or 1 + a label."""
        fine, coarse, labels = [], [], []
        for pixels_SS3, mask_SS in scenes:
            grids = run(pixels_SS3)
            fine.append(grids[0].astype(np.float16))
            coarse.append(grids[1].astype(np.float16))
            middle = POINT_PIXELS // 2
            points_pp = mask_SS[middle::POINT_PIXELS, middle::POINT_PIXELS]
            labels.append((points_pp - 1).astype(np.int16))
        return cls(
            fine_nChw=np.stack(fine), coarse_nChw=np.stack(coarse), label_npp=np.stack(labels)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What points of scenes show: a name, or a concept that several names mean.

    Attributes:
        names: In lower case; they are the first labels.
        member_LK: Whether a label means a name.
        is_withheld_L: Labels that nothing is trained on, so that the evaluation twin can share the
            trunk.
    """

    names: tuple[str, ...]
    member_LK: NDArray[np.bool_]
    is_withheld_L: NDArray[np.bool_]

    @classmethod
    def of(cls, names: Sequence[str]) -> Self:
        """Labels of the names and of all concepts."""
        index, concepts = {name: number for number, name in enumerate(names)}, all_concepts()
        member_LK = np.zeros((len(names) + len(concepts), len(names)), np.bool_)
        member_LK[np.arange(len(names)), np.arange(len(names))] = True
        for row, concept in enumerate(concepts, start=len(names)):
            drawings = [drawing.lower() for drawing in concept.drawings]
            member_LK[row, [index[name] for name in drawings if name in index]] = True
        is_withheld_L = np.zeros(len(member_LK), np.bool_)
        is_withheld_L[: len(names)] = withheld(names)
        return cls(names=tuple(names), member_LK=member_LK, is_withheld_L=is_withheld_L)

    def index(self) -> dict[str, int]:
        """Label of each name."""
        return {name: number for number, name in enumerate(self.names)}


def shown(label_npp: NDArray[np.int16], labels: Labels) -> Tensor:
    """Labels int64 [n, p, p] that are trained on, -1 for the others."""
    label = torch.from_numpy(label_npp.astype(np.int64))
    is_left_out = torch.from_numpy(labels.is_withheld_L)[label.clamp(min=0)]
    return torch.where(is_left_out, -1, label)
