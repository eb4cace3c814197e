"""A run on a folder of images follows from the teacher and the images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Tipsv2Config

from model.variants import variant
from training.config import ModelConfig
from training.data.shards.batches import ShardsConfig
from training.heads import SMALL_HEAD
from training.methods.distill import DistillConfig
from training.recipes.from_folder import (
    SMALL_CROPS,
    FolderRun,
    TeacherFacts,
    distill_folder,
    pretrain_folder,
)

SAME, OTHER = ModelConfig().build(300), variant("b14").build()


@pytest.mark.parametrize(
    ("size", "prototypes", "vocab", "captioned", "expected"),
    [
        (OTHER, 7, 300, 1, ("prototypes", "fresh")),
        (OTHER, None, 300, 1, ("features", "fresh")),  # as released
        (SAME, 7, 300, 1, ("prototypes", "teacher")),
        (SAME, 7, 301, 1, ("prototypes", "fresh")),
        (SAME, 7, None, 1, ("prototypes", "fresh")),
        # Without captions a copied text tower keeps what it is compared with.
        (SAME, 7, 300, 0, ("features", "teacher")),
        (OTHER, 7, 300, 0, ("prototypes", "fresh")),
    ],
)
def test_the_method_follows_the_teacher_and_the_captions(
    make_images: Callable[..., Path],
    size: Tipsv2Config,
    prototypes: int | None,
    vocab: int | None,
    captioned: int,
    expected: tuple[str, str],
) -> None:
    options = FolderRun(name="mine", images=make_images(count=3, captioned=captioned))
    facts = TeacherFacts(config=size, num_prototypes=prototypes, vocab_size=vocab)
    method = distill_folder(options, Path("giant"), facts).method
    assert isinstance(method, DistillConfig)
    assert (method.patch_loss, method.text_start) == expected
    if method.patch_loss == "prototypes":
        assert method.head == replace(SMALL_HEAD, num_prototypes=7)


def test_a_batch_is_no_larger_than_the_folder(make_images: Callable[..., Path]) -> None:
    options = FolderRun(name="mine", images=make_images(count=3, captioned=1), steps=50)
    config = pretrain_folder(options)
    assert (config.batch_size, config.num_steps, config.optim.warmup_steps) == (3, 50, 5)
    assert (config.precision, config.optim.optimizer) == ("auto", "auto")
    assert isinstance(config.data, ShardsConfig)
    assert config.data.crops == SMALL_CROPS
