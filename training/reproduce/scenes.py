"""Scenes as grids of cells of the frozen image network, and captions as fixed vectors of MiniLM.

A cell says what it shows, so the model on top needs minutes, not days, until its contrast
converges; and its grid is fine enough that masks hide some of an object's patches and leave others.
With a text tower that learns, a short run measures how far it has got; here every text has its
final vector from the first step on.

Shapes: S scenes, K channels of a cell, h w cells (one cell is one patch), H W pixels, C texts, D
width, B images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from model.text import TEMPLATES
from training.checkpoint import save_atomically
from training.data.array_record import ArrayRecord
from training.data.batch import Batch, TextBatch, uncropped
from training.data.captions import CaptionSampling
from training.data.folder import EMOJI_TRAIN_STYLES, DataFolder
from training.data.scenes import Scene, SceneConfig, SceneSource, Split, compose_scene
from training.pretrained.image_backbone import PATCH_PIXELS, Basis, FrozenImageBackbone, fit_basis
from training.pretrained.text import sentence_embeddings

NAMES = (
    "airplane", "banana", "bicycle", "book", "bus", "butterfly", "cat", "clock",
    "cow", "dog", "elephant", "guitar", "house", "pizza", "tree", "umbrella",
)  # fmt: skip
# The nine prompts of TIPSv2's own evaluation; not chosen on any scene.
_TEMPLATES = TEMPLATES["tcl"]
_BATCH = 8
_BASIS_SCENES = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class CellConfig:
    """Settings of the sets of scenes; a cell has `width` principal components."""

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
    """Scenes: float16 cells, int16 masks as in `Scene`, for evaluation only, and captions."""

    cells_SKhw: NDArray[np.float16]
    mask_SHW: NDArray[np.int16]
    short: tuple[str, ...]
    keywords: tuple[str, ...]
    scene: tuple[str, ...]

    def captions(self, row: int) -> dict[str, str]:
        """Those of a scene by their source."""
        return {"alt": self.short[row], "keywords": self.keywords[row], "scene": self.scene[row]}


def _encoded(
    source: SceneSource, config: CellConfig, count: int
) -> Iterator[tuple[list[Scene], Tensor]]:
    """The first scenes of a source, some at a time, with the network's features [B, N, F]."""
    network = FrozenImageBackbone()
    scenes = (compose_scene(source, number, config.scenes) for number in range(count))
    while batch := list(islice(scenes, _BATCH)):
        pixels_BHW3 = torch.from_numpy(np.stack([scene.pixels_SS3 for scene in batch]))
        yield batch, network.encode_patches(pixels_BHW3.permute(0, 3, 1, 2).float() / 255)


@cache
def _basis(data: DataFolder, config: CellConfig) -> Basis:
    """The axes of the first training scenes."""
    source = data.source("train", styles=EMOJI_TRAIN_STYLES, names=frozenset(NAMES))
    cells = [cells_BNF.flatten(0, 1) for _, cells_BNF in _encoded(source, config, _BASIS_SCENES)]
    return fit_basis(torch.cat(cells), config.width)


def _compute(
    data: DataFolder, config: CellConfig, wanted: tuple[Split, tuple[str, ...], int]
) -> CellScenes:
    """Compose the first scenes of a split in some styles, and encode them."""
    split, styles, count = wanted
    print(f"cells of {count} scenes: {split}, {', '.join(styles)}", flush=True)
    basis, grid = _basis(data, config), (config.grid, config.grid)
    source = data.source(split, styles=styles, names=frozenset(NAMES))
    cells, found = list[Tensor](), list[Scene]()
    for scenes, cells_BNF in _encoded(source, config, count):
        cells.append(basis.reduce(cells_BNF).mT.unflatten(2, grid).half())
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
    sets: dict[str, tuple[Split, tuple[str, ...], int]] = {
        "train": ("train", EMOJI_TRAIN_STYLES, config.num_train),
        "seen": ("test", EMOJI_TRAIN_STYLES, config.num_test),
        "unseen": ("test", ("fluent-3d",), config.num_test),
    }
    return {
        name: CellScenes.kept(folder / f"{name}.npz", partial(_compute, data, config, wanted))
        for name, wanted in sets.items()
    }


class FixedTexts(nn.Module):
    """Looks up a text's vector; its only token is the row. Takes the place of a text tower."""

    def __init__(self, vectors_CD: Tensor) -> None:
        super().__init__()
        self.vectors_CD: Tensor
        self.register_buffer("vectors_CD", vectors_CD, persistent=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object
    ) -> BaseModelOutputWithPooling:
        """See `model.features.text_features`; `input_ids` is int64 [C, 1]."""
        return BaseModelOutputWithPooling(pooler_output=self.vectors_CD[input_ids[:, 0]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextTable:
    """The row of every text of a plan, and float32 vectors of unit length."""

    rows: dict[str, int]
    vectors_CD: Tensor

    def batch(self, texts: Sequence[str]) -> TextBatch:
        """Tokenised texts for `FixedTexts`."""
        ids_B1 = torch.tensor([[self.rows[text]] for text in texts]).reshape(len(texts), 1)
        return TextBatch(token_ids_BL=ids_B1, mask_BL=torch.ones_like(ids_B1))

    def classes(self) -> Tensor:
        """Vectors [K, D] of `NAMES`, each the mean over its prompts."""
        by_name = [[self.rows[prompt.format(name)] for prompt in _TEMPLATES] for name in NAMES]
        return F.normalize(self.vectors_CD[torch.tensor(by_name)].mean(1), dim=-1)


def cached_texts(scenes: CellScenes, width: int, folder: Path) -> TextTable:
    """Embed the captions of scenes and the names' prompts, reduced to a width."""
    prompts = [prompt.format(name) for name in NAMES for prompt in _TEMPLATES]
    # Sorted by length, because a batch is as long as its longest text.
    distinct = {*prompts, *scenes.short, *scenes.keywords, *scenes.scene}
    texts = sorted(distinct, key=lambda text: (len(text), text))
    path = folder / "texts.pt"
    if not path.exists():
        print(f"MiniLM's vectors of {len(texts)} texts", flush=True)
        save_atomically({"sentences": sentence_embeddings(texts)}, path)
    sentences_CF = torch.load(path, map_location="cpu", weights_only=True)["sentences"]
    vectors_CD = F.normalize(fit_basis(sentences_CF, width).reduce(sentences_CF), dim=-1)
    return TextTable(rows={text: row for row, text in enumerate(texts)}, vectors_CD=vectors_CD)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellBatches:
    """Batches of scenes, without repetition in a batch; batch i depends on the seed and i only."""

    scenes: CellScenes
    texts: TextTable
    captions: CaptionSampling
    batch_size: int
    num_steps: int
    seed: int

    def loader(self, first_step: int, *, num_workers: int) -> Iterator[Batch]:
        """Iterate from a step on; there is nothing to prefetch."""
        del num_workers
        for step in range(first_step, self.num_steps):
            yield self._batch(np.random.default_rng((self.seed, step)))

    def _batch(self, rng: np.random.Generator) -> Batch:
        chosen_B = rng.choice(len(self.scenes.short), self.batch_size, replace=False)
        cells_BKhw = torch.from_numpy(self.scenes.cells_SKhw[chosen_B]).float()
        pairs = [self.captions.choose(self.scenes.captions(row), rng) for row in chosen_B]
        cls1, cls2 = (
            self.texts.batch([pair[token] for pair in pairs if pair is not None])
            for token in (0, 1)
        )
        return Batch(
            pixels_B3HW=cells_BKhw,
            locals_CB3hw=uncropped(cells_BKhw)[1],
            captioned_B=torch.ones(self.batch_size, dtype=torch.bool),
            cls1=cls1,
            cls1_ids_T=cls1.token_ids_BL[:, 0],
            cls2=cls2,
            cls2_ids_T=cls2.token_ids_BL[:, 0],
            names=self.texts.batch([]),
            name_ids_U=torch.zeros(0, dtype=torch.int64),
            present_BU=torch.zeros((self.batch_size, 0), dtype=torch.bool),
        )
