"""Scenes as grids of cells of the frozen image network, computed once and shared by all runs.

A cell says what it shows, so the model on top needs minutes, not days, until its contrast
converges; and a grid of 12 x 12 is fine enough that masks hide some of an object's patches and
leave others.

Shapes: S scenes, K channels of a cell, h w cells (one cell is one patch), H W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.array_record import ArrayRecord
from training.data.folder import EMOJI_TRAIN_STYLES, DataFolder
from training.data.scenes import Scene, SceneConfig, SceneSource, Split, compose_scene
from training.pretrained.image_backbone import (
    PATCH_PIXELS,
    Basis,
    FrozenImageBackbone,
    fit_basis,
)

NAMES = (
    "airplane", "banana", "bicycle", "book", "bus", "butterfly", "cat", "clock",
    "cow", "dog", "elephant", "guitar", "house", "pizza", "tree", "umbrella",
)  # fmt: skip
UNSEEN_STYLE = "fluent-3d"
_BATCH = 8
_BASIS_SCENES = 96
# Split, styles and number of scenes.
_Wanted = tuple[Split, tuple[str, ...], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellConfig:
    """Settings of the sets of scenes.

    Attributes:
        grid: Cells of a side.
        width: K; principal components of the network's 1280 features.
        num_train: Training scenes.
        num_test: Scenes of each of the two test sets.
    """

    grid: int = 8
    width: int = 256
    num_train: int = 1440
    num_test: int = 150

    @property
    def scenes(self) -> SceneConfig:
        """Two or three objects that cover most of the image, on textures or photos."""
        return SceneConfig(
            size=self.grid * PATCH_PIXELS,
            count_weights=(0.0, 0.75, 0.25),
            min_size=0.55,
            max_size=1.0,
            margin=0.22,
            common_share=1.0,
            twin_share=0.0,
            is_textured=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellScenes(ArrayRecord):
    """A set of scenes.

    Attributes:
        cells_SKhw: float16.
        mask_SHW: int16; as in `Scene`. For evaluation only.
        short: Captions of the scenes; see `Captions`.
        keywords: Likewise.
        scene: Likewise.
    """

    cells_SKhw: NDArray[np.float16]
    mask_SHW: NDArray[np.int16]
    short: tuple[str, ...]
    keywords: tuple[str, ...]
    scene: tuple[str, ...]

    def captions(self, row: int) -> dict[str, str]:
        """Those of a scene by their source."""
        return {"alt": self.short[row], "keywords": self.keywords[row], "scene": self.scene[row]}


def _pixels(scenes: list[Scene]) -> Tensor:
    pixels_SHW3 = torch.from_numpy(np.stack([scene.pixels_SS3 for scene in scenes]))
    return pixels_SHW3.permute(0, 3, 1, 2).float() / 255


def _batches(source: SceneSource, config: SceneConfig, count: int) -> Iterator[list[Scene]]:
    scenes = (compose_scene(source, number, config) for number in range(count))
    while batch := list(islice(scenes, _BATCH)):
        yield batch


@cache
def _basis(data: DataFolder, config: CellConfig) -> tuple[FrozenImageBackbone, Basis]:
    """The network, and the axes of the first training scenes."""
    network = FrozenImageBackbone()
    source = data.source("train", styles=EMOJI_TRAIN_STYLES, names=frozenset(NAMES))
    first = _batches(source, config.scenes, _BASIS_SCENES)
    cells_MF = torch.cat([network.encode_patches(_pixels(s)).flatten(0, 1) for s in first])
    return network, fit_basis(cells_MF, config.width)


def _compute(data: DataFolder, config: CellConfig, wanted: _Wanted) -> CellScenes:
    """Compose scenes 0 to count - 1 of a split, and encode them."""
    split, styles, count = wanted
    print(f"cells of {count} scenes: {split}, {', '.join(styles)}", flush=True)
    network, basis = _basis(data, config)
    source = data.source(split, styles=styles, names=frozenset(NAMES))
    cells, found = list[Tensor](), list[Scene]()
    for scenes in _batches(source, config.scenes, count):
        reduced_BNK = basis.reduce(network.encode_patches(_pixels(scenes)))
        cells.append(reduced_BNK.mT.unflatten(2, (config.grid, config.grid)).half())
        found += scenes
    return CellScenes(
        cells_SKhw=torch.cat(cells).numpy(),
        mask_SHW=np.stack([scene.mask_SS.astype(np.int16) for scene in found]),
        short=tuple(scene.captions.short for scene in found),
        keywords=tuple(scene.captions.keywords for scene in found),
        scene=tuple(scene.captions.scene for scene in found),
    )


def cached_cells(data: DataFolder, config: CellConfig, folder: Path) -> dict[str, CellScenes]:
    """The sets "train", "seen" and "unseen", from the folder or computed into it."""
    sets: dict[str, _Wanted] = {
        "train": ("train", EMOJI_TRAIN_STYLES, config.num_train),
        "seen": ("test", EMOJI_TRAIN_STYLES, config.num_test),
        "unseen": ("test", (UNSEEN_STYLE,), config.num_test),
    }
    return {
        name: CellScenes.kept(folder / f"{name}.npz", partial(_compute, data, config, wanted))
        for name, wanted in sets.items()
    }
