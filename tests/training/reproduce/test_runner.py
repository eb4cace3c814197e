"""Training, measuring and resuming the arms."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.reproduce.conftest import SCALE
from training.methods.distill import Distill
from training.methods.pretrain import Pretrain
from training.reproduce import runner as runner_module
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
from training.reproduce.runner import Setup, build_method, result_path, run_all, summary, train_arm


def arm_of(toy: Setup, name: str) -> Arm:
    """The arm of seed 0 with a name."""
    found = {arm.config.name: arm for group in arms(SCALE, 0, toy.runs) for arm in group}
    return found[name]


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
