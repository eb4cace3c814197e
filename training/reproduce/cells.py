"""Scenes as grids of cells of the frozen image network, computed once and shared by all runs.

A cell says what it shows, so the model on top needs minutes, not days, until its contrast
converges; and a grid of 12 x 12 is fine enough that masks hide some of an object's patches and
leave others.

Shapes: S scenes, K channels of a cell, h w cells (one cell is one patch), H W pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.checkpoint import save_atomically
from training.data.captions import Captions
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
class CellScenes:
    """A set of scenes.

    Attributes:
        cells_SKhw: float16.
        mask_SHW: int16; as in `Scene`. For evaluation only.
        captions: Of each scene.
    """

    cells_SKhw: Tensor
    mask_SHW: Tensor
    captions: Sequence[Captions]


def _pixels(scenes: list[Scene]) -> Tensor:
    pixels_SHW3 = torch.from_numpy(np.stack([scene.pixels_SS3 for scene in scenes]))
    return pixels_SHW3.permute(0, 3, 1, 2).float() / 255


def _batches(source: SceneSource, config: SceneConfig, count: int) -> Iterator[list[Scene]]:
    scenes = (compose_scene(source, number, config) for number in range(count))
    while batch := list(islice(scenes, _BATCH)):
        yield batch


def _compute(
    source: SceneSource,
    config: CellConfig,
    count: int,
    *,
    network: FrozenImageBackbone,
    basis: Basis,
) -> dict[str, object]:
    """Compose scenes 0 to count - 1 of a source, and encode them: the content of a set's file."""
    cells, masks, captions = list[Tensor](), list[Tensor](), list[dict[str, object]]()
    for scenes in _batches(source, config.scenes, count):
        reduced_BNK = basis.reduce(network.encode_patches(_pixels(scenes)))
        cells.append(reduced_BNK.mT.unflatten(2, (config.grid, config.grid)).half())
        masks += [torch.from_numpy(scene.mask_SS.astype(np.int16)) for scene in scenes]
        captions += [asdict(scene.captions) for scene in scenes]
    return {"cells": torch.cat(cells), "mask": torch.stack(masks), "captions": captions}


def _load(path: Path) -> CellScenes:
    found = torch.load(path, weights_only=True)
    captions = [Captions(**row) for row in found["captions"]]
    return CellScenes(cells_SKhw=found["cells"], mask_SHW=found["mask"], captions=captions)


def cached_cells(data: DataFolder, config: CellConfig, folder: Path) -> dict[str, CellScenes]:
    """The sets "train", "seen" and "unseen", from the folder or computed into it."""
    sets: dict[str, tuple[Split, tuple[str, ...], int]] = {
        "train": ("train", EMOJI_TRAIN_STYLES, config.num_train),
        "seen": ("test", EMOJI_TRAIN_STYLES, config.num_test),
        "unseen": ("test", (UNSEEN_STYLE,), config.num_test),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.pt" for name in sets}
    missing = [name for name in sets if not paths[name].exists()]
    if missing:
        network, names = FrozenImageBackbone(), frozenset(NAMES)
        source = data.source("train", styles=EMOJI_TRAIN_STYLES, names=names)
        first = _batches(source, config.scenes, _BASIS_SCENES)
        cells_MF = torch.cat([network.encode_patches(_pixels(s)).flatten(0, 1) for s in first])
        basis = fit_basis(cells_MF, config.width)
    for name in missing:
        split, styles, count = sets[name]
        print(f"cells of {count} scenes: {name}", flush=True)
        source = data.source(split, styles=styles, names=names)
        content = _compute(source, config, count, network=network, basis=basis)
        save_atomically(content, paths[name])
    return {name: _load(path) for name, path in paths.items()}
