"""Captions and prompts as fixed vectors of MiniLM, in place of a trained text tower.

With a text tower that learns, a short run measures how far it has got. Here every text has its
final vector from the first step on.

Shapes: C texts, D width, B images, T captioned images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from model.text import TEMPLATES
from training.checkpoint import save_atomically
from training.data.batch import Batch, TextBatch, uncropped
from training.data.captions import CaptionSampling
from training.pretrained.image_backbone import fit_basis
from training.pretrained.text import sentence_embeddings
from training.reproduce.cells import NAMES, CellScenes

# The nine prompts of TIPSv2's own evaluation; not chosen on any scene.
_TEMPLATES = TEMPLATES["tcl"]
_FILE = "texts.pt"


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
    """Every text of a plan and its vector.

    Attributes:
        rows: Row of each text.
        vectors_CD: float32, of unit length.
    """

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
    path = folder / _FILE
    if not path.exists():
        print(f"MiniLM's vectors of {len(texts)} texts", flush=True)
        save_atomically({"sentences": sentence_embeddings(texts)}, path)
    sentences_CF = torch.load(path, map_location="cpu", weights_only=True)["sentences"]
    vectors_CD = F.normalize(fit_basis(sentences_CF, width).reduce(sentences_CF), dim=-1)
    return TextTable(rows={text: row for row, text in enumerate(texts)}, vectors_CD=vectors_CD)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellBatches:
    """Batches of scenes, of which batch i is always the same.

    Attributes:
        scenes: What they are drawn from, without repetition within a batch.
        texts: The captions' vectors.
        captions: Which captions supervise which CLS token.
        batch_size: Scenes in a batch.
        num_steps: Number of batches.
        seed: Of the order.
    """

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
