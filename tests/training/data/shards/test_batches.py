"""Batches of images from disk, and the order of samples."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from transformers import Tipsv2Tokenizer

from training.data.batch import RunShare, tokenize
from training.data.shards import sample
from training.data.shards.batches import ImageBatches, ShardsConfig, StreamOrder
from training.data.shards.sample import BrokenList, Sample
from training.data.shards.store import ImageFolder, ShardStore, build_shards
from training.data.shards.tar_shard import load_offsets

MakeBatches = Callable[..., ImageBatches]

Same = Callable[[object, object], bool]
SHARE = RunShare(batch_size=4, num_steps=15)  # 60 images: more than two epochs


@pytest.fixture
def shards(tmp_path: Path, image_folder: Path) -> Path:
    """Twenty-three images in shards of five."""
    build_shards(ImageFolder(image_folder), tmp_path / "shards", 5)
    return tmp_path / "shards"


@pytest.fixture
def make(
    shards: Path, tokenizer: Tipsv2Tokenizer, shards_config: ShardsConfig
) -> Callable[..., ImageBatches]:
    """Build batches over the shards."""

    def build(
        share: RunShare = SHARE, *, broken: BrokenList | None = None, **changes: Any
    ) -> ImageBatches:
        config = replace(shards_config, **changes) if changes else shards_config
        return ImageBatches(ShardStore(shards), tokenizer, config, share, broken=broken)

    return build


def damage(shards: Path, shard: int, row: int) -> None:
    """Overwrite the middle of an image."""
    path = shards / f"shard-{shard:06d}.tar"
    content = bytearray(path.read_bytes())
    start = content.index(b"\x89PNG", load_offsets(path)[row])
    content[start : start + 60] = b"\xff" * 60
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_sees_the_very_next_batch(
    make: MakeBatches, is_same: Same, num_workers: int
) -> None:
    whole = list(make().loader(0, num_workers=0))
    assert len(whole) == len(make()) == 15
    assert not is_same(whole[0], whole[1])
    original = ShardStore.read
    with patch.object(ShardStore, "read", autospec=True, side_effect=original) as read:
        rest = list(make().loader(9, num_workers=num_workers))
    assert num_workers or read.call_count == 6 * 4  # nothing of what came before
    assert all(is_same(a, b) for a, b in zip(whole[9:], rest, strict=True))


def test_the_ranks_batches_together_are_the_batch_of_one(make: MakeBatches) -> None:
    for step in (0, 5, 9):
        whole = make(replace(SHARE, batch_size=6))[step].batch
        parts = [
            make(replace(SHARE, batch_size=2, rank=rank, num_ranks=3))[step].batch
            for rank in range(3)
        ]
        for name in ("pixels_B3HW", "locals_CB3hw", "captioned_B", "cls1_ids_T", "cls2_ids_T"):
            joined = torch.cat([getattr(part, name) for part in parts], int(name == "locals_CB3hw"))
            assert torch.equal(joined, getattr(whole, name)), name


def test_captions_go_with_their_images(
    make: MakeBatches, samples: list[Sample], tokenizer: Tipsv2Tokenizer
) -> None:
    batch = make(RunShare(batch_size=23, num_steps=1))[0].batch
    colours = batch.pixels_B3HW[:, :2, 0, 0].int().tolist()
    by_colour = {(n * 9 % 256, n * 5 % 256): sample for n, sample in enumerate(samples)}
    found = [by_colour[tuple(colour)] for colour in colours]
    assert batch.captioned_B.tolist() == [bool(sample.captions) for sample in found]
    captioned = [sample.captions for sample in found if sample.captions]
    alts = tokenize(tokenizer, [captions["alt"] for captions in captioned])
    longs = tokenize(tokenizer, [captions.get("gemini", captions["alt"]) for captions in captioned])
    assert torch.equal(batch.cls1.token_ids_BL, alts.token_ids_BL)
    assert torch.equal(batch.cls2.token_ids_BL, longs.token_ids_BL)


def test_a_plain_folder_gives_the_batches_of_its_shards(
    make: MakeBatches,
    image_folder: Path,
    tokenizer: Tipsv2Tokenizer,
    shards_config: ShardsConfig,
    is_same: Same,
) -> None:
    store = ImageFolder(image_folder, shard_size=5)
    plain = ImageBatches(store, tokenizer, shards_config, SHARE)
    for step in (0, 3, 14):
        assert is_same(plain[step].batch, make()[step].batch)


def test_a_broken_sample_is_replaced_counted_and_listed_once(
    make: MakeBatches, shards: Path, tmp_path: Path, is_same: Same, caplog: pytest.LogCaptureFixture
) -> None:
    untouched = list(make().loader(0, num_workers=0))
    damage(shards, 1, 2)
    path = tmp_path / "run/broken.jsonl"
    batches = make(broken=BrokenList(path))
    with caplog.at_level(logging.WARNING):
        found = list(batches.loader(0, num_workers=0))
    assert [len(batch.pixels_B3HW) for batch in found] == [4] * 15
    assert len(batches.broken) == 1
    line = json.loads(path.read_text())
    assert line["place"] == "shard-000001.tar row 2"
    assert "cannot be decoded" in line["reason"]
    assert [record for record in caplog.records if "shard-000001.tar row 2" in record.message]
    changed = [not is_same(a, b) for a, b in zip(untouched, found, strict=True)]
    assert sum(changed) in (2, 3)  # once an epoch
    # Another run with a worker process makes the same batches and adds nothing to the list.
    ahead = list(make(broken=BrokenList(path)).loader(0, num_workers=1))
    assert all(is_same(a, b) for a, b in zip(found, ahead, strict=True))
    assert len(path.read_text().splitlines()) == 1


def test_a_data_set_that_cannot_give_batches_is_an_error(
    make: MakeBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no image"):
        StreamOrder(np.zeros(3, np.int64), seed=0, window_shards=2)
    with pytest.raises(ValueError, match="window_shards"):
        make(window_shards=0)
    with pytest.raises(ValueError, match="lower batch_size"):
        make(replace(SHARE, batch_size=12, num_ranks=2))
    with monkeypatch.context() as patch:
        patch.setattr(sample, "LIMITS", replace(sample.LIMITS, max_pixels=1000))
        with pytest.raises(ValueError, match="in a row are broken"):
            _ = make()[0]
    monkeypatch.setattr(ShardStore, "read", Mock(side_effect=OSError("the disk is gone")))
    with pytest.raises(OSError, match="the disk is gone"):  # not a broken sample
        _ = make()[0]


SIZES = np.array([4, 0, 7, 3, 5, 6])
TOTAL = 25
PINNED = [(4, 2), (4, 0), (4, 4), (2, 6), (5, 3), (0, 2), (0, 0)]


def order(**changes: int) -> StreamOrder:
    """Six shards, one of them empty, two in a window."""
    return StreamOrder(SIZES, **{"seed": 0, "window_shards": 2, **changes})


@pytest.mark.parametrize("window_shards", [2, 100])
def test_every_epoch_holds_every_sample_once(window_shards: int) -> None:
    stream = order(window_shards=window_shards)
    expected = {(shard, row) for shard, size in enumerate(SIZES) for row in range(size)}
    epochs = [[stream.at(epoch * TOTAL + i) for i in range(TOTAL)] for epoch in range(3)]
    for places in epochs:
        assert len(places) == len(set(places)) == TOTAL
        assert set(places) == expected
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_place_does_not_depend_on_earlier_calls_or_versions() -> None:
    """A run that began with an earlier version resumes at its next sample."""
    stream = order()
    forwards = [stream.at(place) for place in range(60)]
    assert [stream.at(place) for place in reversed(range(60))] == forwards[::-1]
    assert [order().at(i) for i in (59, 3, 31)] == [forwards[i] for i in (59, 3, 31)]
    assert [order(seed=5).at(place) for place in (0, 1, 2, 12, 24, 25, 1000)] == PINNED
