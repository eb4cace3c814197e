"""Batches with local crops, steps, and a record of the images that each network encodes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers import Tipsv2Tokenizer
from transformers.models.tipsv2.modeling_tipsv2 import Tipsv2VisionEmbeddings

from model import features
from model.position import embed_pixels
from tests.training.conftest import TINY_HEAD
from training.config import TrainingConfig
from training.data.batch import Batch
from training.methods.base import Method, Step, Terms
from training.methods.teacher import FrozenTeacher
from training.methods.terms import TARGET_WIDTH
from training.run import new_model
from training.targets import Centering

NUM_CROPS = 3
MakeTeacher = Callable[..., FrozenTeacher]

Encoded = tuple[Tipsv2VisionEmbeddings, Tensor, Tensor | None]


def take_step(
    method: Method, batch: Batch, progress: float, *, seed: int = 0
) -> tuple[Tensor, Terms]:
    """Loss and terms of a batch on one rank."""
    step = Step(
        progress=progress,
        generator=torch.Generator().manual_seed(seed),
        first_row=0,
        global_rows=len(batch.pixels_B3HW),
    )
    loss, terms = method(batch, step)
    return loss, terms


class MeanColours:
    """An image backbone whose target is the mean colour of each patch; remembers batch sizes."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def patch_targets(self, pixels_B3HW: Tensor) -> Tensor:
        """Targets [B, N, K]."""
        self.shown.append(len(pixels_B3HW))
        means_BN3 = avg_pool2d(pixels_B3HW, 14).flatten(2).transpose(1, 2)
        waves_K = torch.linspace(1.0, 9.0, TARGET_WIDTH)
        return (means_BN3.sum(-1, keepdim=True) * waves_K).sin()


@pytest.fixture
def cropped(batch: Batch) -> Batch:
    """The batch of four scenes, with three local crops of one patch for each."""
    generator = torch.Generator().manual_seed(2)
    crops = torch.rand(NUM_CROPS, len(batch.pixels_B3HW), 3, 14, 14, generator=generator)
    return replace(batch, locals_CB3hw=crops)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Encoded]:
    """Every image that enters a vision tower: the tower's embeddings, the pixels, the mask."""
    seen: list[Encoded] = []

    def remember(
        embeddings: Tipsv2VisionEmbeddings, pixels_B3HW: Tensor, masked_BN: Tensor | None = None
    ) -> Tensor:
        seen.append((embeddings, pixels_B3HW, masked_BN))
        return embed_pixels(embeddings, pixels_B3HW, masked_BN)

    monkeypatch.setattr(features, "embed_pixels", remember)
    return seen


@pytest.fixture
def make_teacher(tiny_config: TrainingConfig, tokenizer: Tipsv2Tokenizer) -> MakeTeacher:
    """Build a random teacher of some width, with its head or, as released, without one."""

    def make(*, dim: int = 48, has_head: bool = True) -> FrozenTeacher:
        size = replace(tiny_config.model, dim=dim)
        model = new_model(replace(tiny_config, model=size, seed=5), len(tokenizer))
        centering = Centering(TINY_HEAD.num_prototypes, temperature=TINY_HEAD.teacher_temperature)
        return FrozenTeacher(
            vision_model=model.vision_model,
            text_model=model.text_model,
            head=TINY_HEAD.build(dim) if has_head else None,
            centering=centering if has_head else None,
        )

    return make
