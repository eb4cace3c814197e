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
    RECIPE,
    START,
    WARM,
    Arm,
    Scale,
    arms,
    planned,
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


def arm_of(toy: Setup, name: str) -> Arm:
    """The arm of seed 0 with a name."""
    found = {arm.config.name: arm for group in arms(SCALE, 0, toy.runs) for arm in group}
    return found[name]


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
    theirs = train_arm(toy, arm_of(toy, START)).state_dict()
    for name in (IBOT, IBOT_PP):
        branch = build_method(toy, arm_of(toy, name).config)
        assert isinstance(branch, Pretrain)
        for key, value in branch.state_dict().items():
            if key in theirs and not key.startswith("model.text_model"):
                assert torch.equal(value, theirs[key]), key


def test_students_predict_their_teachers_prototypes(toy: Setup) -> None:
    train_arm(toy, arm_of(toy, START))
    teacher = train_arm(toy, arm_of(toy, IBOT))
    warm, cold = (
        build_method(toy, arm_of(toy, student_of(IBOT, kind)).config) for kind in (WARM, RECIPE)
    )
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
    def few(scale: Scale, seeds: list[int], runs: Path) -> list[Arm]:
        wanted = (START, IBOT_PP)
        return [arm for arm in planned(scale, seeds, runs) if arm.config.name in wanted]

    monkeypatch.setattr(runner_module, "planned", few)
    made: list[dict[str, Any]] = []
    run = partial(run_all, results=tmp_path / "r", after_each=made.append)
    run(toy, [0])
    assert [(result["arm"], result["seed"]) for result in made] == [
        (START, "seed-0"),
        (IBOT_PP, "seed-0"),
    ]
    path = result_path(tmp_path / "r", arm_of(toy, IBOT_PP).config)
    assert json.loads(path.read_text(encoding="utf-8")) == made[1]
    run(toy, [0, 1])
    assert [result["seed"] for result in made] == ["seed-0"] * 2 + ["seed-1"] * 2
    rows = summary(tmp_path / "r", SCALE).splitlines()[2:]
    assert [(row.split(" | ")[0], row.split(" | ")[-1]) for row in rows] == [
        ("| start", "2 |"),
        ("| ibot++", "2 |"),
    ]


def test_a_stopped_arm_resumes_and_ends_the_same(
    toy: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = replace(toy, runs=tmp_path / "stopped")
    whole = train_arm(toy, arm_of(toy, START))
    with monkeypatch.context() as patch:
        train = Trainer.train
        patch.setattr(Trainer, "train", lambda self: train(self, until=1))
        train_arm(stopped, arm_of(stopped, START))
    resumed = train_arm(stopped, arm_of(stopped, START))
    for value, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(value, expected)
