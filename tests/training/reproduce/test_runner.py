"""Training, measuring and resuming the arms."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.reproduce.conftest import SCALE, toy_scenes
from training.methods.distill import Distill
from training.methods.pretrain import Pretrain
from training.reproduce import runner as runner_module
from training.reproduce.cells import NAMES
from training.reproduce.plan import (
    IBOT,
    IBOT_PP,
    START,
    WARM,
    Arm,
    arms,
    student_of,
)
from training.reproduce.runner import (
    LARGEST,
    PAINTED,
    PATCHES,
    Setup,
    build_method,
    result_path,
    run_all,
    segment,
    summary,
    train_arm,
)
from training.trainer import Trainer

BY_NAME = {arm.name: arm for part in arms(SCALE) for arm in part}


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Plan these arms alone."""

    def few(_: object, seeds: list[int]) -> list[tuple[int, Arm]]:
        return [(seed, BY_NAME[name]) for seed in seeds for name in names]

    monkeypatch.setattr(runner_module, "planned", few)


def test_perfect_patches_segment_perfectly_and_painting_does_not() -> None:
    scenes = toy_scenes(4, 0)
    classes = np.eye(len(NAMES), dtype=np.float32)
    name_SN = scenes.cells_SKhw.argmax(1).reshape(4, -1)  # the first channels say the name
    patches = classes[name_SN]
    found = segment({PATCHES: patches, PAINTED: patches[:, 0]}, scenes, classes)
    assert found[PATCHES]["which"] > 95
    assert found[PAINTED]["which"] == pytest.approx(50, abs=1)
    assert found[LARGEST]["mIoU"] < found[PATCHES]["mIoU"]


def test_arms_continue_from_their_start_with_its_head(toy: Setup) -> None:
    start = train_arm(toy, BY_NAME[START], 0)
    branches = [build_method(toy, BY_NAME[arm], 0) for arm in (IBOT, IBOT_PP)]
    theirs = start.state_dict()
    for branch in branches:
        assert isinstance(branch, Pretrain)
        for name, value in branch.state_dict().items():
            if name in theirs and not name.startswith("model.text_model"):
                assert torch.equal(value, theirs[name]), name


def test_students_predict_their_teachers_prototypes(toy: Setup) -> None:
    train_arm(toy, BY_NAME[START], 0)
    teacher = train_arm(toy, BY_NAME[IBOT], 0)
    warm = build_method(toy, BY_NAME[student_of(IBOT, WARM)], 0)
    cold = build_method(toy, BY_NAME[student_of(IBOT, "mask 0")], 0)
    assert isinstance(warm, Distill)
    assert isinstance(cold, Distill)
    assert isinstance(teacher, Pretrain)
    ours, theirs = warm.model.vision_model, teacher.model.vision_model
    for value, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(value, expected)
    assert not torch.equal(next(cold.model.vision_model.parameters()), next(theirs.parameters()))
    patches = torch.randn(1, 3, SCALE.width)
    rows, assign = warm._teacher.assign_patches(patches)
    assert teacher.teacher_head is not None
    cosines = teacher.teacher_head(patches)[0] - teacher.state_dict()["centering.centre_K"]
    expected = (cosines / SCALE.head.teacher_temperature).softmax(-1)
    torch.testing.assert_close(assign(rows), expected)


def test_a_finished_arm_is_not_trained_again(
    toy: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, START, IBOT_PP)
    made: list[dict[str, Any]] = []
    run = partial(run_all, results=tmp_path / "r", after_each=made.append)
    run(toy, [0])
    assert [(result["arm"], result["seed"]) for result in made] == [(START, 0), (IBOT_PP, 0)]
    path = result_path(tmp_path / "r", 0, IBOT_PP)
    assert json.loads(path.read_text(encoding="utf-8")) == made[1]
    run(toy, [0, 1])
    assert [result["seed"] for result in made] == [0, 0, 1, 1]
    rows = summary(tmp_path / "r", SCALE).splitlines()[2:]
    assert [(row.split(" | ")[0], row.split(" | ")[-1]) for row in rows] == [
        ("| start", "2 |"),
        ("| ibot++", "2 |"),
    ]


def test_a_stopped_arm_resumes_and_ends_the_same(
    toy: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = replace(toy, runs=tmp_path / "stopped")
    whole = train_arm(toy, BY_NAME[START], 0)
    with monkeypatch.context() as patch:
        train = Trainer.train
        patch.setattr(Trainer, "train", lambda self: train(self, until=1))
        train_arm(stopped, BY_NAME[START], 0)
    resumed = train_arm(stopped, BY_NAME[START], 0)
    for value, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(value, expected)
