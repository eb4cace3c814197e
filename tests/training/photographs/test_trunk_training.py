"""The trunk's tail: it is the trunk's, learns names, resumes, and leaves withheld names alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from model.efficientnet_lite import Trunk
from tests.training.photographs.miniature import bank, drawings, random_space
from training.data.folder import DataFolder
from training.photographs import trunk_training
from training.photographs.activations import Activations, Labels, shown
from training.photographs.heads import DrawingSpace, Moments
from training.photographs.scenes import ViewSource
from training.photographs.trunk_features import Grids, RunTrunk
from training.photographs.trunk_training import Finetuning, TailTrainer

NAMES = ("dog face", "lion", "trumpet")  # "lion" is withheld by the hash split


@pytest.fixture
def trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk()


def test_withheld_names_are_not_trained_on_and_a_concept_stands_for_its_drawings() -> None:
    found = shown(np.asarray([[[-1, 0], [1, 2]]], np.int16), Labels.of(NAMES))
    assert found.tolist() == [[[-1, 0], [-1, 2]]]
    members = Labels.of(("poodle", "trumpet", "dog face")).member_LK[3:]
    assert members[members.sum(1).argmax()].tolist() == [True, False, True]


def scenes(seed: int, count: int) -> Activations:
    """Scenes whose halves show two names, each with channels of its own."""
    rng = np.random.default_rng(seed)
    label_npp = np.zeros((count, 16, 16), np.int16)
    label_npp[:, :, 8:] = 2
    fine = rng.random((count, 112, 4, 4)) / 4
    fine[:, :56, :, :2] += 1
    fine[:, 56:, :, 2:] += 1
    coarse = fine.reshape(count, 112, 2, 2, 2, 2).mean((3, 5))
    return Activations(
        fine_nChw=fine.astype(np.float16),
        coarse_nChw=coarse.astype(np.float16),
        label_npp=label_npp,
    )


def trainer(trunk: Trunk) -> TailTrainer:
    torch.manual_seed(1)
    return TailTrainer(trunk, nn.Linear(1280, 1000), random_space(3), Labels.of(NAMES))


def test_names_are_learnt_and_a_stopped_run_goes_on(trunk: Trunk, tmp_path: Path) -> None:
    parts, photographs = [scenes(0, 8 * 16), scenes(1, 4 * 16)], scenes(9, 4)
    straight, stopped, resumed = (trainer(trunk) for _ in range(3))
    rows = [row for part in parts for row in straight.train(part, photographs, total=12)]
    assert rows[-1][0] < 0.8 * rows[0][0]
    stopped.train(parts[0], photographs, total=12)
    stopped.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    resumed.train(parts[1], photographs, total=12)
    assert resumed.steps == straight.steps == 12
    own, others = straight.average.state_dict(), resumed.average.state_dict()
    assert all(torch.equal(weight, others[name]) for name, weight in own.items())


def compile_in_torch(scales: nn.Module, _size: int) -> RunTrunk:
    @torch.inference_mode()
    def run(pixels_SS3: NDArray[np.uint8]) -> Grids:
        fine, coarse = scales(torch.from_numpy(pixels_SS3).permute(2, 0, 1)[None].float() / 255)
        return fine[0].numpy(), coarse[0].numpy()

    return run


def _space(_moments: Moments, names: Sequence[str]) -> tuple[DrawingSpace, None]:
    """Cells of a random trunk are too much alike for a discriminant."""
    return random_space(len(names)), None


def _crop(_data: Path, size: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), np.uint8)
    return pixels, np.full((size, size), 1 + index % 3, np.int32)


def test_only_the_tail_is_trained(
    trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk_training, "compile_scales", compile_in_torch)
    monkeypatch.setattr(trunk_training, "fit_drawings", _space)
    monkeypatch.setattr(trunk_training, "region_view", _crop)
    monkeypatch.setattr(trunk_training, "_CROPS", 6)
    views = ViewSource(drawings=drawings(64), photos=(), size=64)
    data = DataFolder(path=tmp_path)
    bank().save(data.path / "sprites.npz")
    tuning = Finetuning(source=views, data=data, folder=tmp_path, parts=2)
    assert tuning.first_pass == 3  # passes 0 and 1 start it, pass 2 is learnt
    classes, before = nn.Linear(1280, 1000), trunk.state_dict()
    trained = tuning.run(trunk, classes)
    after = trained.state_dict()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    blocks = [f"blocks.{number}." for number in range(11, 16)]
    assert changed
    assert all(name.startswith(("head.", *blocks)) for name in changed)
    assert (tuning.folder / "tail.safetensors").exists()
    assert torch.equal(tuning.run(trunk, classes).head.weight, trained.head.weight)
    none = replace(tuning, parts=0)
    assert none.run(trunk, classes) is trunk
    assert none.first_pass == 0
