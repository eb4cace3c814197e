"""Scenes as grids of cells of the frozen image network, computed once and shared by all runs.

A cell says what it shows, so the model on top needs minutes, not days, until its contrast
converges; and a grid of 12 x 12 is fine enough that masks hide some of an object's patches and
leave others.

Shapes: S scenes, K channels of a cell, h w cells (one cell is one patch), H W pixels.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
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
# The file of a set is complete as soon as it exists.
_BASIS_FILE = "basis.pt"
_BATCH = 8
_BASIS_BATCHES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class CellConfig:
    """Settings of the sets of scenes.

    Attributes:
        grid: Cells of a side.
        width: K; principal components of the network's 1280 features.
        num_train: Training scenes.
        num_val: Scenes that decide whether contrast has converged.
        num_test: Scenes of each of the two test sets.
    """

    grid: int = 8
    width: int = 256
    num_train: int = 1440
    num_val: int = 100
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

    cells_SKhw: NDArray[np.float16]
    mask_SHW: NDArray[np.int16]
    captions: tuple[Captions, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def save(self, path: Path) -> None:
        """Write them; the file appears when it is complete."""
        texts = json.dumps([asdict(captions) for captions in self.captions])
        arrays = {"cells": self.cells_SKhw, "mask": self.mask_SHW, "captions": np.asarray(texts)}
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        partial.replace(path)


def load_cells(path: Path) -> CellScenes:
    """Read what `CellScenes.save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        rows = json.loads(str(file["captions"]))
        captions = tuple(Captions(**{**row, "names": tuple(row["names"])}) for row in rows)
        return CellScenes(cells_SKhw=file["cells"], mask_SHW=file["mask"], captions=captions)


def _pixels(scenes: list[Scene]) -> Tensor:
    pixels_SHW3 = torch.from_numpy(np.stack([scene.pixels_SS3 for scene in scenes]))
    return pixels_SHW3.permute(0, 3, 1, 2).float() / 255


def _batches(source: SceneSource, config: SceneConfig, count: int) -> Iterator[list[Scene]]:
    for first in range(0, count, _BATCH):
        numbers = range(first, min(first + _BATCH, count))
        yield [compose_scene(source, number, config) for number in numbers]


def _basis(
    folder: Path, source: SceneSource, config: CellConfig, network: FrozenImageBackbone
) -> Basis:
    path = folder / _BASIS_FILE
    if not path.exists():
        scenes = _batches(source, config.scenes, _BASIS_BATCHES * _BATCH)
        cells_MF = torch.cat([network.encode_patches(_pixels(s)).flatten(0, 1) for s in scenes])
        save_atomically(asdict(fit_basis(cells_MF, config.width)), path)
    return Basis(**torch.load(path, map_location="cpu", weights_only=True))


def compute_cells(
    source: SceneSource,
    config: CellConfig,
    count: int,
    *,
    network: FrozenImageBackbone,
    basis: Basis,
) -> CellScenes:
    """Compose scenes 0 to count - 1 of a source, and encode them."""
    cells, masks, captions = [], [], []
    for scenes in _batches(source, config.scenes, count):
        reduced_BNK = basis.reduce(network.encode_patches(_pixels(scenes)))
        grid_BKhw = reduced_BNK.transpose(1, 2).unflatten(2, (config.grid, config.grid))
        cells.append(grid_BKhw.numpy().astype(np.float16))
        masks += [scene.mask_SS.astype(np.int16) for scene in scenes]
        captions += [scene.captions for scene in scenes]
    return CellScenes(
        cells_SKhw=np.concatenate(cells), mask_SHW=np.stack(masks), captions=tuple(captions)
    )


def cached_cells(data: DataFolder, config: CellConfig, folder: Path) -> dict[str, CellScenes]:
    """The sets "train", "val", "seen" and "unseen", from the folder or computed into it."""
    sets: dict[str, tuple[Split, tuple[str, ...], int]] = {
        "train": ("train", EMOJI_TRAIN_STYLES, config.num_train),
        "val": ("val", EMOJI_TRAIN_STYLES, config.num_val),
        "seen": ("test", EMOJI_TRAIN_STYLES, config.num_test),
        "unseen": ("test", (UNSEEN_STYLE,), config.num_test),
    }
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in sets if not (folder / f"{name}.npz").exists()]
    if missing:
        network = FrozenImageBackbone()
        sources = {
            name: data.source(split, styles=styles, names=frozenset(NAMES))
            for name, (split, styles, _) in sets.items()
        }
        basis = _basis(folder, sources["train"], config, network)
        for name in missing:
            print(f"cells of {sets[name][2]} scenes: {name}", flush=True)
            cells = compute_cells(
                sources[name], config, sets[name][2], network=network, basis=basis
            )
            cells.save(folder / f"{name}.npz")
    return {name: load_cells(folder / f"{name}.npz") for name in sets}
