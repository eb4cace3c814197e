"""Batches: by number, so a resumed run sees what it would have seen; masks stay behind."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from transformers import Tipsv2Tokenizer

from model.text import TEMPLATES
from training.config import DataConfig, Stage
from training.data.batch import Batch, RunShare, collate, text_ids, tokenize
from training.data.folder import common_names
from training.data.scenes import SceneConfig, SceneSource, compose_scene
from training.data.unnamed import UnnamedBank, UnnamedSource
from training.inputs.scenes import SceneBatches

MakeBatches = Callable[..., SceneBatches]
Same = Callable[[object, object], bool]

JOINED = ("pixels_B3HW", "cls1_ids_T", "cls2_ids_T")
CONFIG = SceneConfig(size=28, count_weights=(0.5, 0.5), min_size=0.5, max_size=0.9)


@pytest.mark.parametrize("texts", [["dog " * 100, "dog"], ["dog", "a dog on the left"], []])
def test_texts_are_cut_and_padded(tokenizer: Tipsv2Tokenizer, texts: list[str]) -> None:
    found = tokenize(tokenizer, texts)
    lengths = [min(len(tokenizer(text)["input_ids"]), 64) for text in texts]
    assert found.token_ids_BL.shape == (len(texts), max(lengths, default=1))
    assert found.mask_BL.sum(1).tolist() == lengths
    assert torch.equal(found.mask_BL == 0, found.token_ids_BL == 0)
    assert found.token_ids_BL.dtype == torch.int64


def test_a_batch_holds_the_names_and_captions_of_its_images(tokenizer: Tipsv2Tokenizer) -> None:
    crops = torch.zeros(3, 3, 14, 14), torch.zeros(0, 3, 3, 14, 14)
    chosen = [("a dog", "a brown dog"), None, ("a cat", "a black cat")]
    batch = collate(chosen, [["dog"], [], ["dog", "cat"]], tokenizer, step=0, crops=crops)
    assert batch.captioned_B.tolist() == [True, False, True]
    # The id of a text does not depend on others.
    assert batch.cls1_ids_T.tolist() == [*text_ids(["a dog"]), *text_ids(["a cat"])]
    assert torch.equal(batch.cls2_ids_T, text_ids(["a brown dog", "a black cat"]))
    assert torch.equal(batch.name_ids_U, text_ids(["cat", "dog"]))
    assert batch.present_BU.tolist() == [[False, True], [False, False], [True, True]]
    bare = collate([None] * 3, [()] * 3, tokenizer, step=0, crops=crops)
    assert len(bare.cls1) == len(bare.cls2) == len(bare.names) == 0
    assert bare.present_BU.shape == (3, 0)


def test_a_name_has_the_same_prompt_on_every_rank_and_another_in_other_steps(
    tokenizer: Tipsv2Tokenizer,
) -> None:
    def prompts(names: list[str], step: int) -> list[str]:
        crops = torch.zeros(1, 3, 14, 14), torch.zeros(0, 1, 3, 14, 14)
        batch = collate([None], [names], tokenizer, step=step, crops=crops)
        return [str(tokenizer.decode(ids[ids > 0])).strip() for ids in batch.names.token_ids_BL]

    names = sorted(common_names())[:8]
    everything = prompts(names, 3)
    assert prompts(names[:3], 3) == everything[:3]
    assert any(prompts(names, step) != everything for step in range(4, 8))
    for name, text in zip(names, everything, strict=True):
        assert text in {t.format(name).lower() for t in ("{}", *TEMPLATES["tcl"])}


@pytest.fixture
def unnamed() -> UnnamedSource:
    """Three plain sprites, of which one has no title."""
    rgba_MSS4 = np.full((3, 8, 8, 4), 255, np.uint8)
    bank = UnnamedBank(rgba_MSS4=rgba_MSS4, titles=("lamp", "", "kettle"))
    return UnnamedSource(bank=bank, photos=())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_sees_the_very_next_batch(
    make_batches: MakeBatches, is_same: Same, num_workers: int
) -> None:
    whole = list(make_batches().loader(0, num_workers=0))
    rest = list(make_batches().loader(4, num_workers=num_workers))
    assert len(whole) == len(make_batches()) == 6
    assert all(is_same(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not is_same(whole[4], whole[5])


def test_a_batch_is_what_its_scenes_say_without_their_masks(
    make_batches: MakeBatches, source: SceneSource, tokenizer: Tipsv2Tokenizer, is_same: Same
) -> None:
    batch = make_batches(batch_size=8)[0]
    scenes = [compose_scene(source, index, CONFIG) for index in range(8)]
    pixels = np.stack([scene.pixels_SS3 for scene in scenes]).transpose(0, 3, 1, 2)
    assert np.array_equal(batch.pixels_B3HW, pixels)
    names = sorted({name for scene in scenes for name in scene.captions.names})
    present = [[name in scene.captions.names for name in names] for scene in scenes]
    assert batch.present_BU.tolist() == present
    assert torch.equal(batch.name_ids_U, text_ids(names))
    assert batch.captioned_B.all()
    assert is_same(batch.cls1, tokenize(tokenizer, [scene.captions.short for scene in scenes]))
    for chosen, scene in zip(batch.cls2_ids_T, scenes, strict=True):
        assert chosen in text_ids([scene.captions.keywords, scene.captions.scene])
    assert not [field.name for field in fields(Batch) if "mask" in field.name]


def test_the_ranks_batches_together_are_the_batch_of_one(
    source: SceneSource, tokenizer: Tipsv2Tokenizer, unnamed: UnnamedSource
) -> None:
    def make(step: int, rank: int = 0, num_ranks: int = 1) -> Batch:
        size = 6 // num_ranks
        config = DataConfig(stages=(Stage(scenes=CONFIG, unnamed=size),))
        share = RunShare(batch_size=size, num_steps=2, rank=rank, num_ranks=num_ranks)
        return SceneBatches(source, tokenizer, config, share, unnamed=unnamed)[step]

    for step in range(2):
        whole, parts = make(step), [make(step, rank, 3) for rank in range(3)]
        for name in JOINED:
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name)), name
        drawings = [p.unnamed.pixels_E3hw for p in (whole, *parts) if p.unnamed is not None]
        assert torch.equal(torch.cat(drawings[1:]), drawings[0])


def test_the_curriculum_changes_when_its_share_is_done(make_batches: MakeBatches) -> None:
    sizes = ((0.25, 14), (0.5, 28), (1.0, 42))
    stages = tuple(Stage(until=until, scenes=replace(CONFIG, size=s)) for until, s in sizes)
    batches = make_batches(num_steps=8, batch_size=2, stages=stages)
    found = [batch.pixels_B3HW.shape[-1] for batch in batches.loader(0, num_workers=0)]
    assert found == [14, 14, 28, 28, 42, 42, 42, 42]
    with pytest.raises(ValueError, match=r"until 1\.0"):
        DataConfig(stages=(Stage(until=0.9),))
