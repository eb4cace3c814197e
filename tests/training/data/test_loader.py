"""Batches: by number, so a resumed run sees what it would have seen; masks stay behind."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from transformers import Tipsv2Tokenizer

from training.data.batch import Batch, RunShare, text_ids, tokenize
from training.data.crops import CropConfig
from training.data.loader import Curriculum, SceneBatches, Stage
from training.data.scenes import SceneConfig, SceneSource, compose_scene
from training.data.unnamed import UnnamedBank, UnnamedSource

MakeBatches = Callable[..., SceneBatches]
Same = Callable[[object, object], bool]

JOINED = {"pixels_B3HW": 0, "locals_CB3hw": 1, "cls1_ids_T": 0, "cls2_ids_T": 0}
CONFIG = SceneConfig(size=28, count_weights=(0.5, 0.5), min_size=0.5, max_size=0.9)


@pytest.fixture
def unnamed() -> UnnamedSource:
    """Three plain sprites, of which one has no title."""
    rgba_MSS4 = np.full((3, 8, 8, 4), 255, np.uint8)
    bank = UnnamedBank(rgba_MSS4=rgba_MSS4, titles=("lamp", "", "kettle"))
    return UnnamedSource(bank=bank, photos=(), scenes=replace(CONFIG, count_weights=(1.0,)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_sees_the_very_next_batch(
    make_batches: MakeBatches, is_same: Same, num_workers: int
) -> None:
    whole = list(make_batches().loader(0, num_workers=0))
    rest = list(make_batches().loader(4, num_workers=num_workers))
    assert len(whole) == len(make_batches()) == 6
    assert all(is_same(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not is_same(whole[4], whole[5])


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
        Curriculum(stages=stages)


def test_a_batch_is_what_its_scenes_say_without_their_masks(
    make_batches: MakeBatches, source: SceneSource, tokenizer: Tipsv2Tokenizer, is_same: Same
) -> None:
    batch = make_batches(batch_size=8)[0]
    scenes = [compose_scene(source, index, CONFIG) for index in range(8)]
    for row, scene in enumerate(scenes):
        expected = torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1)
        torch.testing.assert_close(batch.pixels_B3HW[row], expected)
    names = sorted({name for scene in scenes for name in scene.captions.names})
    present = [[name in scene.captions.names for name in names] for scene in scenes]
    assert batch.present_BU.tolist() == present
    assert torch.equal(batch.name_ids_U, text_ids(names))
    assert batch.captioned_B.all()
    assert is_same(batch.cls1, tokenize(tokenizer, [scene.captions.short for scene in scenes]))
    longs = [{scene.captions.keywords, scene.captions.scene} for scene in scenes]
    for chosen, captions in zip(batch.cls2_ids_T, longs, strict=True):
        assert chosen in text_ids(sorted(captions))
    assert not [field.name for field in fields(Batch) if "mask" in field.name]


def test_the_ranks_batches_together_are_the_batch_of_one(
    source: SceneSource,
    make_batches: MakeBatches,
    tokenizer: Tipsv2Tokenizer,
    unnamed: UnnamedSource,
) -> None:
    def make(step: int, rank: int = 0, num_ranks: int = 1) -> Batch:
        size = 6 // num_ranks
        curriculum = Curriculum(
            stages=(Stage(scenes=CONFIG, unnamed=size),),
            crops=CropConfig(num_local=2, local_size=14),
        )
        share = RunShare(batch_size=size, num_steps=2, rank=rank, num_ranks=num_ranks)
        return SceneBatches(source, tokenizer, curriculum, share, unnamed=unnamed)[step]

    for step in range(2):
        whole, parts = make(step), [make(step, rank, 3) for rank in range(3)]
        assert whole.locals_CB3hw.shape == (2, 6, 3, 14, 14)
        # Local crops leave the scene as it is.
        assert torch.equal(whole.pixels_B3HW, make_batches(batch_size=6)[step].pixels_B3HW)
        for name, axis in JOINED.items():
            joined = torch.cat([getattr(part, name) for part in parts], axis)
            assert torch.equal(joined, getattr(whole, name)), name
        drawings = [p.unnamed.pixels_E3hw for p in (whole, *parts) if p.unnamed is not None]
        assert torch.equal(torch.cat(drawings[1:]), drawings[0])


def test_a_stage_with_unnamed_drawings_adds_them_to_the_batch(
    source: SceneSource, tokenizer: Tipsv2Tokenizer, unnamed: UnnamedSource, is_same: Same
) -> None:
    stages = (Stage(until=0.5, scenes=CONFIG, unnamed=6), Stage(scenes=CONFIG))
    curriculum, share = Curriculum(stages=stages), RunShare(batch_size=2, num_steps=2)
    batches = SceneBatches(source, tokenizer, curriculum, share, unnamed=unnamed)
    assert batches[1].unnamed is None
    drawings = batches[0].unnamed
    assert drawings is not None
    expected = [unnamed.image(index) for index in range(6)]
    for row, (pixels_SS3, title) in enumerate(expected):
        image = torch.from_numpy(pixels_SS3).permute(2, 0, 1)
        torch.testing.assert_close(drawings.pixels_E3hw[row], image)
        assert drawings.titled_E[row].item() is bool(title)
    titles = [title for _, title in expected if title]
    assert 0 < len(titles) < 6
    assert is_same(drawings.titles, tokenize(tokenizer, titles))
    assert torch.equal(drawings.title_ids_T, text_ids(titles))
    with pytest.raises(ValueError, match="no source for them"):
        SceneBatches(source, tokenizer, curriculum, share)
    with pytest.raises(ValueError, match="must not be below 0"):
        Stage(unnamed=-1)
