"""Batches: by number, so a resumed run sees what it would have seen; masks stay behind."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from transformers import Tipsv2Tokenizer

from model.text import TEMPLATES
from training.data import loader as loader_module
from training.data.batch import Batch, TextBatch, text_ids, tokenize
from training.data.crops import CropConfig, crop_images
from training.data.loader import BatchPlan, SceneBatches, Stage, collate
from training.data.scenes import Scene, SceneConfig, SceneSource, compose_scene
from training.data.unnamed import UnnamedBank, UnnamedSource

MakeBatches = Callable[..., SceneBatches]

CONFIG = SceneConfig(size=28, count_weights=(0.5, 0.5), min_size=0.5, max_size=0.9)


def is_same(first: object, second: object) -> bool:
    """Whether two batches have equal tensors throughout."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    if first is None or second is None:
        return first is second
    assert isinstance(first, Batch | TextBatch)
    return all(is_same(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))


def text_of(tokenizer: Tipsv2Tokenizer, token_ids_L: torch.Tensor) -> str:
    """What was tokenised, in lower case."""
    return str(tokenizer.decode(token_ids_L[token_ids_L > 0])).strip()


@pytest.fixture
def scenes(source: SceneSource) -> list[Scene]:
    """Eight scenes, some of one drawing."""
    return [compose_scene(source, index, CONFIG) for index in range(8)]


def whole(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """The scenes themselves as global crops, and no local ones."""
    images = [torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1) for scene in scenes]
    return crop_images(images, CropConfig(), seed=0, first=0)


def shorts_and_sentences(scenes: list[Scene]) -> list[tuple[str, str]]:
    """For each scene the caption of CLS1 and of CLS2."""
    return [(scene.captions.short, scene.captions.scene) for scene in scenes]


def test_a_resumed_run_sees_the_very_next_batch(make_batches: MakeBatches) -> None:
    whole = list(make_batches().loader(0, num_workers=0))
    rest = list(make_batches().loader(4, num_workers=0))
    assert len(whole) == len(make_batches()) == 6
    assert all(is_same(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not is_same(whole[4], whole[5])


def test_worker_processes_make_the_same_batches(make_batches: MakeBatches) -> None:
    batches = make_batches(num_steps=3)
    ahead = list(batches.loader(1, num_workers=1))
    assert all(is_same(a, batches[i]) for i, a in enumerate(ahead, start=1))


def test_ranks_share_the_scenes_among_them(
    make_batches: MakeBatches, monkeypatch: pytest.MonkeyPatch
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


def test_the_curriculum_changes_when_its_share_is_done(make_batches: MakeBatches) -> None:
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


def test_a_batch_is_what_its_scenes_say(scenes: list[Scene], tokenizer: Tipsv2Tokenizer) -> None:
    chosen = shorts_and_sentences(scenes)
    batch = collate(chosen, scenes, tokenizer, step=0, crops=whole(scenes))
    for row, scene in enumerate(scenes):
        expected = torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1) / 255
        torch.testing.assert_close(batch.pixels_B3HW[row], expected)
    names = sorted({name for scene in scenes for name in scene.captions.names})
    present = [[name in scene.captions.names for name in names] for scene in scenes]
    assert batch.present_BU.tolist() == present
    assert batch.present_BU.dtype == torch.bool
    assert torch.equal(batch.name_ids_U, text_ids(names))
    assert batch.captioned_B.all()
    assert is_same(batch.cls1, tokenize(tokenizer, [first for first, _ in chosen]))
    assert is_same(batch.cls2, tokenize(tokenizer, [second for _, second in chosen]))
    prompts = batch.names.token_ids_BL
    assert len(prompts) == len(names)
    for name, ids in zip(names, prompts, strict=True):
        forms = {template.format(name).lower() for template in ("{}", *TEMPLATES["tcl"])}
        assert text_of(tokenizer, ids) in forms


def test_a_name_has_one_prompt_a_step_whichever_rank_asks(
    scenes: list[Scene], tokenizer: Tipsv2Tokenizer
) -> None:
    def prompts(some: list[Scene], step: int) -> dict[int, str]:
        batch = collate(shorts_and_sentences(some), some, tokenizer, step=step, crops=whole(some))
        texts = [text_of(tokenizer, ids) for ids in batch.names.token_ids_BL]
        return dict(zip(batch.name_ids_U.tolist(), texts, strict=True))

    everything = prompts(scenes, 3)
    assert prompts(scenes[:3], 3).items() <= everything.items()
    assert any(prompts(scenes, step) != everything for step in range(4, 8))


def test_the_ranks_batches_together_are_the_batch_of_one(
    make_batches: MakeBatches, tokenizer: Tipsv2Tokenizer
) -> None:
    for step in range(2):
        whole = make_batches(batch_size=6)[step]
        parts = [make_batches(batch_size=2, rank=rank, num_ranks=3)[step] for rank in range(3)]
        assert torch.equal(torch.cat([part.pixels_B3HW for part in parts]), whole.pixels_B3HW)
        assert torch.equal(torch.cat([part.cls1_ids_T for part in parts]), whole.cls1_ids_T)
        assert torch.equal(torch.cat([part.cls2_ids_T for part in parts]), whole.cls2_ids_T)


def test_local_crops_are_made_and_leave_the_scene_as_it_is(
    source: SceneSource, make_batches: MakeBatches, tokenizer: Tipsv2Tokenizer
) -> None:
    plan = BatchPlan(
        stages=(Stage(scenes=CONFIG),),
        batch_size=6,
        num_steps=2,
        crops=CropConfig(num_local=2, local_size=14),
    )
    batch = SceneBatches(source, tokenizer, plan)[1]
    assert batch.locals_CB3hw.shape == (2, 6, 3, 14, 14)
    assert torch.equal(batch.pixels_B3HW, make_batches(batch_size=6)[1].pixels_B3HW)
    halves = [
        SceneBatches(source, tokenizer, replace(plan, batch_size=3), rank=rank, num_ranks=2)[1]
        for rank in range(2)
    ]
    together = torch.cat([half.locals_CB3hw for half in halves], dim=1)
    assert torch.equal(together, batch.locals_CB3hw)


def test_masks_never_reach_a_training_step(scenes: list[Scene], tokenizer: Tipsv2Tokenizer) -> None:
    chosen = shorts_and_sentences(scenes)
    blind = [replace(scene, mask_SS=np.zeros_like(scene.mask_SS)) for scene in scenes]
    batch = collate(chosen, scenes, tokenizer, step=0, crops=whole(scenes))
    assert is_same(batch, collate(chosen, blind, tokenizer, step=0, crops=whole(blind)))
    assert not [field.name for field in fields(Batch) if "mask" in field.name]


@pytest.fixture
def unnamed() -> UnnamedSource:
    """Three plain sprites, of which one has no title."""
    rgba_MSS4 = np.full((3, 8, 8, 4), 255, np.uint8)
    bank = UnnamedBank(rgba_MSS4=rgba_MSS4, titles=("lamp", "", "kettle"))
    return UnnamedSource(bank=bank, photos=(), scenes=replace(CONFIG, count_weights=(1.0,)))


def test_stages_with_unnamed_drawings_add_them_to_the_batch(
    source: SceneSource, tokenizer: Tipsv2Tokenizer, unnamed: UnnamedSource
) -> None:
    stages = (Stage(until=0.5, scenes=CONFIG, unnamed=6), Stage(scenes=CONFIG))
    plan = BatchPlan(stages=stages, batch_size=2, num_steps=2)
    batches = SceneBatches(source, tokenizer, plan, unnamed=unnamed)
    with_drawings, without = batches[0], batches[1]
    assert without.unnamed is None
    drawings = with_drawings.unnamed
    assert drawings is not None
    expected = [unnamed.image(index) for index in range(6)]
    for row, (pixels_SS3, title) in enumerate(expected):
        image = torch.from_numpy(pixels_SS3).permute(2, 0, 1) / 255
        torch.testing.assert_close(drawings.pixels_E3hw[row], image)
        assert drawings.titled_E[row].item() is bool(title)
    titles = [title for _, title in expected if title]
    assert 0 < len(titles) < 6
    assert is_same(drawings.titles, tokenize(tokenizer, titles))
    assert torch.equal(drawings.title_ids_T, text_ids(titles))


def test_ranks_share_the_unnamed_drawings(
    source: SceneSource, tokenizer: Tipsv2Tokenizer, unnamed: UnnamedSource
) -> None:
    def pixels(rank: int, num_ranks: int, count: int) -> torch.Tensor:
        stages = (Stage(scenes=CONFIG, unnamed=count),)
        plan = BatchPlan(stages=stages, batch_size=2, num_steps=3)
        batches = SceneBatches(
            source, tokenizer, plan, unnamed=unnamed, rank=rank, num_ranks=num_ranks
        )
        drawings = batches[2].unnamed
        assert drawings is not None
        return drawings.pixels_E3hw

    together = torch.cat([pixels(rank, 2, 2) for rank in range(2)])
    assert torch.equal(together, pixels(0, 1, 4))


def test_a_stage_with_unnamed_drawings_needs_some(
    source: SceneSource, tokenizer: Tipsv2Tokenizer
) -> None:
    plan = BatchPlan(stages=(Stage(scenes=CONFIG, unnamed=1),), batch_size=2, num_steps=1)
    with pytest.raises(ValueError, match="no source for them"):
        SceneBatches(source, tokenizer, plan)
    with pytest.raises(ValueError, match="must not be below 0"):
        Stage(unnamed=-1)
