"""Parts of the fine-tuning: crowds, their labels, the order, and what is left in the folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from model.efficientnet_lite import Trunk
from training.data.concepts import all_concepts
from training.data.sprites import SpriteBank
from training.photographs import trunk_training as finetune
from training.photographs.drawing_scenes import (
    FURTHER_STYLES,
    CrowdSource,
    ViewSource,
    crowd_sprites,
)
from training.photographs.drawings import NamedDrawings
from training.photographs.encoder import CellMoments, all_names
from training.photographs.heads import DrawingSpace
from training.photographs.trunk_features import Grids, RunTrunk
from training.photographs.trunk_training import Finetuning

NAMES = ("dog face", "trumpet", "violin", "anchor")


def squares(count: int) -> NDArray[np.uint8]:
    """Squares of different greys."""
    rgba = np.zeros((count, 96, 96, 4), np.uint8)
    rgba[:, 8:88, 8:88, 3] = 255
    rgba[..., :3] = np.linspace(0, 250, count, dtype=np.uint8)[:, None, None, None]
    return rgba


def drawings(count: int) -> NamedDrawings:
    return NamedDrawings(
        rgba_MSS4=squares(count), name_M=np.arange(count) % len(NAMES), names=NAMES
    )


def bank() -> SpriteBank:
    """A dog and a car of a further style, and a dog of another one."""
    concepts = [concept.name for concept in all_concepts()]
    rows = [concepts.index(name) for name in ("dog", "car", "dog")]
    return SpriteBank(
        rgba_MSS4=squares(3),
        concept_M=np.asarray(rows),
        style_M=np.asarray([0, 0, 1]),
        styles=(*FURTHER_STYLES[:1], "noto", *FURTHER_STYLES[1:]),
    )


def test_crowds_show_further_drawings_of_known_names_only() -> None:
    index = {name: number for number, name in enumerate(NAMES)}
    rgba, label_M = crowd_sprites(drawings(4), bank(), index, first_concept=100)
    dog = [concept.name for concept in all_concepts()].index("dog")
    assert label_M.tolist() == [0, 1, 2, 3, 100 + dog]
    assert len(rgba) == 5


def test_a_part_of_crowds_is_a_function_of_its_number() -> None:
    source = CrowdSource(
        rgba_MSS4=squares(4), label_M=np.arange(4), photos=(), size=128, scenes_per_part=3
    )
    first, again, other = source.part(1), source.part(1), source.part(2)
    assert len(first) == 3
    for one, same in zip(first, again, strict=True):
        assert np.array_equal(one[0], same[0])
        assert np.array_equal(one[1], same[1])
    assert not np.array_equal(first[0][0], other[0][0])
    assert all(len(np.unique(mask[mask > 0])) >= 1 for _, mask in first)


def compile_in_torch(scales: nn.Module, _size: int) -> RunTrunk:
    @torch.inference_mode()
    def run(pixels_SS3: NDArray[np.uint8]) -> Grids:
        fine, coarse = scales(torch.from_numpy(pixels_SS3).permute(2, 0, 1)[None].float() / 255)
        return fine[0].numpy(), coarse[0].numpy()

    return run


def _space(_moments: CellMoments, names: Sequence[str]) -> tuple[DrawingSpace, None]:
    rng = np.random.default_rng(0)
    fine, coarse = (rng.normal(size=(4, 1280)).astype(np.float32) for _ in range(2))
    zeros, vectors = np.zeros(1280, np.float32), rng.normal(size=(len(names), 4))
    space = DrawingSpace(
        fine_DF=fine,
        coarse_DF=coarse,
        fine_mean_F=zeros,
        coarse_mean_F=zeros,
        names_KD=vectors.astype(np.float32),
    )
    return space, None


def _crop(_data: Path, size: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), np.uint8)
    return pixels, np.full((size, size), 1 + index % 3, np.int32)


@pytest.fixture
def tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finetuning:
    monkeypatch.setattr(finetune, "compile_scales", compile_in_torch)
    # Cells of a random trunk are too much alike for a discriminant.
    monkeypatch.setattr(finetune, "fit_drawings", _space)
    monkeypatch.setattr(finetune, "region_view", _crop)
    monkeypatch.setattr(finetune, "_CROPS", 6)
    return Finetuning(
        source=ViewSource(drawings=drawings(64), photos=(), size=64),
        bank=bank(),
        data=tmp_path,
        folder=tmp_path,
        parts=2,
    )


def test_only_the_tail_is_trained(tuning: Finetuning, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk, classes = Trunk(), nn.Linear(1280, 1000)
    trained = tuning.run(trunk, classes)
    changed = {
        name
        for name, weight in trained.state_dict().items()
        if not torch.equal(weight, trunk.state_dict()[name])
    }
    blocks = [f"blocks.{number}." for number in range(11, 16)]
    assert changed
    assert all(name.startswith(("head.", *blocks)) for name in changed)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert "tail.safetensors" in left
    # Learnt parts are gone; those that the start needs stay.
    assert [name for name in left if "crowds" in name or "views-002" in name] == []
    again = tuning.run(trunk, classes)
    assert torch.equal(again.head.weight, trained.head.weight)


def test_without_parts_the_trunk_stays_as_it_is(tuning: Finetuning, tmp_path: Path) -> None:
    trunk = Trunk()
    none = Finetuning(
        source=tuning.source, bank=tuning.bank, data=tmp_path, folder=tmp_path, parts=0
    )
    assert none.run(trunk, nn.Linear(1280, 1000)) is trunk
    assert none.first_pass == 0
    assert tuning.first_pass == 3  # passes 0 and 1 start it, pass 2 is learnt


def test_names_of_the_drawings_are_the_first_labels() -> None:
    assert all_names(NAMES)[: len(NAMES)] == NAMES
