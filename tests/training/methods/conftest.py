"""Batches with local crops, and a record of which network is shown which images."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.models.tipsv2.modeling_tipsv2 import Tipsv2VisionEmbeddings

from model import features
from model.position import embed_pixels
from training.data.batch import Batch

NUM_CROPS = 3

Look = tuple[Tipsv2VisionEmbeddings, Tensor, Tensor | None]


@pytest.fixture
def cropped(batch: Batch) -> Batch:
    """The batch of four scenes, with three local crops of one patch for each."""
    generator = torch.Generator().manual_seed(2)
    crops = torch.rand(NUM_CROPS, len(batch.pixels_B3HW), 3, 14, 14, generator=generator)
    return replace(batch, locals_CB3hw=crops)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Look]:
    """Every image that enters a vision tower: the tower's embeddings, the pixels, the mask."""
    seen: list[Look] = []

    def remember(
        embeddings: Tipsv2VisionEmbeddings, pixels_B3HW: Tensor, masked_BN: Tensor | None = None
    ) -> Tensor:
        seen.append((embeddings, pixels_B3HW, masked_BN))
        return embed_pixels(embeddings, pixels_B3HW, masked_BN)

    monkeypatch.setattr(features, "embed_pixels", remember)
    return seen
