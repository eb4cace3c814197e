"""The trunk's tail: it is the trunk's, learns names, resumes, and leaves withheld names alone."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.efficientnet_lite import Trunk
from training.photographs.activations import Activations, Labels, LowerScales, Tail, shown
from training.photographs.heads import DrawingSpace
from training.photographs.trunk_training import Points, TailTrainer, with_tail

NAMES = ("dog face", "lion", "trumpet")  # "lion" is withheld by the hash split


@pytest.fixture
def trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk()


@torch.inference_mode()
def test_frozen_blocks_and_tail_are_the_trunk(trunk: Trunk) -> None:
    pixels = torch.rand(1, 3, 128, 64)
    fine, coarse = LowerScales(trunk)(pixels)
    assert torch.allclose(Tail(trunk)(fine), trunk(pixels), atol=1e-6)
    assert torch.allclose(Tail(trunk)(coarse), trunk(F.avg_pool2d(pixels, 2)), atol=1e-6)


def test_another_tail_changes_a_copy(trunk: Trunk) -> None:
    other = Tail(deepcopy(trunk))
    nn.init.zeros_(other.head.weight)
    changed = with_tail(trunk, other)
    assert not changed.head.weight.any()
    assert trunk.head.weight.any()
    assert torch.equal(changed.stem.weight, trunk.stem.weight)


def test_points_are_interpolated_like_masks() -> None:
    cells = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(cells, size=(8, 8), mode="bilinear")[0]
    row, column = (x.flatten() for x in torch.meshgrid(*[torch.arange(8)] * 2, indexing="ij"))
    points = Points(torch.zeros(64, dtype=torch.int64), row, column, row)
    found = points.sample(cells.permute(0, 2, 3, 1), 8)
    assert torch.allclose(found, wanted.flatten(1).T, atol=1e-6)


def test_every_drawing_gives_as_many_points_of_its_own() -> None:
    label = torch.full((2, 8, 8), -1)
    label[0, 0, 0], label[1, 4:], label[1, 0, 1] = 0, 2, 1
    points = Points.draw(label, torch.Generator().manual_seed(0))
    assert torch.bincount(points.label_P).unique().numel() == 1
    assert torch.equal(label[points.scene_P, points.row_P, points.column_P], points.label_P)


def test_withheld_names_are_not_trained_on() -> None:
    labels = Labels.of(NAMES)
    found = shown(np.asarray([[[-1, 0], [1, 2]]], np.int16), labels)
    assert found.tolist() == [[[-1, 0], [-1, 2]]]


def test_a_concept_stands_for_its_drawings() -> None:
    labels = Labels.of(("poodle", "trumpet", "dog face"))
    dog = labels.member_LK[3:].sum(1).argmax() + 3
    assert labels.member_LK[dog].tolist() == [True, False, True]


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
    rng = np.random.default_rng(0)
    fine, coarse, names = (
        rng.normal(size=size).astype(np.float32) for size in ((4, 1280), (4, 1280), (3, 4))
    )
    zeros = np.zeros(1280, np.float32)
    space = DrawingSpace(
        fine_DF=fine, coarse_DF=coarse, fine_mean_F=zeros, coarse_mean_F=zeros, names_KD=names
    )
    torch.manual_seed(1)
    return TailTrainer(trunk, nn.Linear(1280, 1000), space, Labels.of(NAMES))


def test_names_are_learnt(trunk: Trunk) -> None:
    rows = trainer(trunk).train(scenes(0, 12 * 16), scenes(1, 4), total=12)
    assert len(rows) == 12
    assert rows[-1][0] < 0.8 * rows[0][0]


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(trunk: Trunk, tmp_path: Path) -> None:
    parts, photographs = [scenes(seed, 32) for seed in range(2)], scenes(9, 4)
    straight, stopped, resumed = (trainer(trunk) for _ in range(3))
    for part in parts:
        straight.train(part, photographs, total=4)
    stopped.train(parts[0], photographs, total=4)
    stopped.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    resumed.train(parts[1], photographs, total=4)
    assert resumed.steps == straight.steps == 4
    for name, weight in straight.average.state_dict().items():
        assert torch.equal(weight, resumed.average.state_dict()[name])
