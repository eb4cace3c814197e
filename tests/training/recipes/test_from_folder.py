"""A run on a folder of images follows from the teacher and the images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Tipsv2Config, Tipsv2Tokenizer

from model.variants import variant
from training.config import ModelConfig
from training.data.shards.batches import ShardsConfig
from training.heads import SMALL_HEAD
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.recipes.from_folder import (
    SMALL_CROPS,
    FolderRun,
    TeacherFacts,
    distill_folder,
    pretrain_folder,
    read_teacher_facts,
)


def folder_run(images: Path) -> FolderRun:
    return FolderRun(name="mine", images=images, num_steps=50)


@pytest.fixture
def options(make_images: Callable[..., Path]) -> FolderRun:
    """Three images, one with a caption."""
    return folder_run(make_images(count=3, captioned=1))


def facts(
    config: Tipsv2Config, *, prototypes: int | None = 7, vocab: int | None = 300
) -> TeacherFacts:
    return TeacherFacts(config=config, num_prototypes=prototypes, vocab_size=vocab)


SAME, OTHER = ModelConfig().build(300), variant("b14").build()


def method_of(options: FolderRun, teacher: TeacherFacts) -> DistillConfig:
    method = distill_folder(options, Path("giant"), teacher).method
    assert isinstance(method, DistillConfig)
    return method


def test_the_method_follows_the_teacher(options: FolderRun) -> None:
    method = method_of(options, facts(OTHER))
    assert (method.patch_loss, method.text_start) == ("prototypes", "fresh")
    assert method.head == replace(SMALL_HEAD, num_prototypes=7)
    released = method_of(options, facts(OTHER, prototypes=None))
    assert released.patch_loss == "features"
    assert method_of(options, facts(SAME)).text_start == "teacher"
    assert method_of(options, facts(SAME)).patch_loss == "prototypes"
    assert method_of(options, facts(SAME, vocab=301)).text_start == "fresh"
    assert method_of(options, facts(SAME, vocab=None)).text_start == "fresh"


def test_without_captions_a_copied_text_tower_keeps_the_teachers_features(
    make_images: Callable[..., Path],
) -> None:
    bare = folder_run(make_images(count=3))
    assert method_of(bare, facts(SAME)).patch_loss == "features"
    assert method_of(bare, facts(OTHER)).patch_loss == "prototypes"


def test_a_batch_is_no_larger_than_the_folder(options: FolderRun) -> None:
    config = pretrain_folder(options)
    assert (config.batch_size, config.num_steps, config.optim.warmup_steps) == (3, 50, 5)
    assert isinstance(config.method, PretrainConfig)
    assert isinstance(config.data, ShardsConfig)
    assert config.data.crops == SMALL_CROPS


def test_the_temperature_may_reach_that_of_the_released_b14(options: FolderRun) -> None:
    for method in (
        pretrain_folder(replace(options, size="b14")).method,
        distill_folder(replace(options, size="b14"), Path("giant"), facts(OTHER)).method,
    ):
        assert method.min_temperature < 0.00507


def test_facts_about_a_teacher_are_read_from_its_folder(
    tmp_path: Path, tokenizer: Tipsv2Tokenizer
) -> None:
    with pytest.raises(FileNotFoundError, match="no teacher in"):
        read_teacher_facts(tmp_path)
    SAME.save_pretrained(tmp_path / "model")
    bare = read_teacher_facts(tmp_path)
    assert (bare.num_prototypes, bare.vocab_size) == (None, None)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    torch.save({"teacher_head.prototypes": torch.zeros(5, 3)}, tmp_path / "heads.pt")
    found = read_teacher_facts(tmp_path)
    assert (found.num_prototypes, found.vocab_size) == (5, len(tokenizer))
    torch.save({"projector.weight": torch.zeros(5, 3)}, tmp_path / "heads.pt")
    assert read_teacher_facts(tmp_path).num_prototypes is None
