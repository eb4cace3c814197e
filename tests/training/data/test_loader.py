"""Batches: by number, so a resumed run sees what it would have seen; masks stay behind."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Tokenizer

from model.text import TEMPLATES
from training.data import loader as loader_module
from training.data.loader import (
    Batch,
    BatchPlan,
    SceneBatches,
    Stage,
    TextBatch,
    collate,
    tokenize,
)
from training.data.scenes import Scene, SceneConfig, SceneSource, compose_scene

CONFIG = SceneConfig(size=28, count_weights=(0.5, 0.5), min_size=0.5, max_size=0.9)


def is_same(first: object, second: object) -> bool:
    """Whether two batches have equal tensors throughout."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    assert isinstance(first, Batch | TextBatch)
    return all(is_same(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))


def text_of(tokenizer: Tipsv2Tokenizer, token_ids_L: torch.Tensor) -> str:
    """What was tokenised, in lower case."""
    return str(tokenizer.decode(token_ids_L[token_ids_L > 0])).strip()


@pytest.fixture
def scenes(source: SceneSource) -> list[Scene]:
    """Eight scenes, some of one drawing."""
    return [compose_scene(source, index, CONFIG) for index in range(8)]


@pytest.fixture
def no_targets(source: SceneSource) -> NDArray[np.float32]:
    """Targets of width 0."""
    return np.zeros((len(source.bank.rgba_MSS4), 0), np.float32)


def test_a_resumed_run_sees_the_very_next_batch(make_batches: Callable[..., SceneBatches]) -> None:
    whole = list(make_batches().loader(0, num_workers=0))
    rest = list(make_batches().loader(4, num_workers=0))
    assert len(whole) == len(make_batches()) == 6
    assert all(is_same(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not is_same(whole[4], whole[5])


def test_worker_processes_make_the_same_batches(make_batches: Callable[..., SceneBatches]) -> None:
    batches = make_batches(num_steps=3)
    ahead = list(batches.loader(1, num_workers=1))
    assert all(is_same(a, batches[i]) for i, a in enumerate(ahead, start=1))


def test_ranks_share_the_scenes_among_them(
    make_batches: Callable[..., SceneBatches], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def remember(source: SceneSource, index: int, config: SceneConfig) -> Scene:
        drawn.append(index)
        return compose_scene(source, index, config)

    monkeypatch.setattr(loader_module, "compose_scene", remember)
    for step in range(2):
        for rank in range(3):
            make_batches(rank=rank, num_ranks=3)[step]
    assert drawn == list(range(2 * 3 * 4))


def test_the_curriculum_changes_when_its_share_is_done(
    make_batches: Callable[..., SceneBatches],
) -> None:
    stages = (
        Stage(until=0.25, scenes=replace(CONFIG, size=14)),
        Stage(until=0.5, scenes=replace(CONFIG, size=28)),
        Stage(scenes=replace(CONFIG, size=42)),
    )
    batches = make_batches(num_steps=8, batch_size=2, stages=stages)
    sizes = [batch.pixels_B3HW.shape[-1] for batch in batches.loader(0, num_workers=0)]
    assert sizes == [14, 14, 28, 28, 42, 42, 42, 42]


@pytest.mark.parametrize("stages", [(), (Stage(until=0.9),)])
def test_a_curriculum_lasts_to_the_end(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(ValueError, match=r"until 1\.0"):
        BatchPlan(stages=stages, batch_size=2, num_steps=4)


def test_a_batch_is_what_its_scenes_say(
    scenes: list[Scene], tokenizer: Tipsv2Tokenizer, no_targets: NDArray[np.float32]
) -> None:
    batch = collate(np.random.default_rng(0), scenes, tokenizer, no_targets)
    for row, scene in enumerate(scenes):
        expected = torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1) / 255
        torch.testing.assert_close(batch.pixels_B3HW[row], expected)
    names = sorted({name for scene in scenes for name in scene.captions.names})
    present = [[name in scene.captions.names for name in names] for scene in scenes]
    assert batch.present_BU.tolist() == present
    assert batch.present_BU.dtype == torch.bool
    shorts = tokenize(tokenizer, [scene.captions.short for scene in scenes])
    assert is_same(batch.cls1, shorts)
    prompts = batch.names.token_ids_BL
    assert len(prompts) == len(names)
    for name, ids in zip(names, prompts, strict=True):
        forms = {template.format(name).lower() for template in ("{}", *TEMPLATES["tcl"])}
        assert text_of(tokenizer, ids) in forms


def test_equal_captions_have_equal_ids(
    scenes: list[Scene], tokenizer: Tipsv2Tokenizer, no_targets: NDArray[np.float32]
) -> None:
    twice = [scenes[0], scenes[1], scenes[0]]
    batch = collate(np.random.default_rng(0), twice, tokenizer, no_targets)
    assert batch.cls1_ids_T.tolist() == [0, 1, 0]


def test_long_captions_alternate_at_even_odds(
    scenes: list[Scene], tokenizer: Tipsv2Tokenizer, no_targets: NDArray[np.float32]
) -> None:
    batch = collate(np.random.default_rng(0), scenes * 20, tokenizer, no_targets)
    texts = [text_of(tokenizer, ids) for ids in batch.cls2.token_ids_BL]
    sentences = {scene.captions.scene.lower() for scene in scenes}
    keywords = {scene.captions.keywords.lower() for scene in scenes}
    # Long sentences are cut at 64 tokens.
    for text in texts:
        assert text in keywords or any(sentence.startswith(text) for sentence in sentences)
    num_keywords = sum(text in keywords for text in texts)
    assert 55 < num_keywords < 105


def test_masks_never_reach_a_training_step(
    scenes: list[Scene], tokenizer: Tipsv2Tokenizer, no_targets: NDArray[np.float32]
) -> None:
    blind = [replace(scene, mask_SS=np.zeros_like(scene.mask_SS)) for scene in scenes]
    batch = collate(np.random.default_rng(0), scenes, tokenizer, no_targets)
    assert is_same(batch, collate(np.random.default_rng(0), blind, tokenizer, no_targets))
    assert not [field.name for field in fields(Batch) if "mask" in field.name]


def test_only_pictures_of_one_drawing_have_a_target(
    scenes: list[Scene], source: SceneSource, tokenizer: Tipsv2Tokenizer
) -> None:
    targets_MK = np.random.default_rng(0).random((len(source.bank.rgba_MSS4), 3), np.float32) + 1
    batch = collate(np.random.default_rng(0), scenes, tokenizer, targets_MK)
    counts = {len(scene.drawings) for scene in scenes}
    assert counts == {1, 2}
    for row, scene in zip(batch.targets_BK.numpy(), scenes, strict=True):
        is_single = len(scene.drawings) == 1
        assert np.array_equal(row, targets_MK[scene.drawings[0]] if is_single else np.zeros(3))


def test_long_texts_are_cut(tokenizer: Tipsv2Tokenizer) -> None:
    texts = tokenize(tokenizer, ["dog " * 100, "dog"])
    assert texts.token_ids_BL.shape == (2, 64)
    assert texts.mask_BL.sum(1).tolist() == [64, len(tokenizer("dog")["input_ids"])]
