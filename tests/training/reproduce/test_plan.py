"""The arms: order, shared starts, teachers before students, and what distinguishes each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.reproduce import plan
from training.reproduce.plan import Scale, arms, planned, student_of

RUNS = Path("runs")
SEED = RUNS / "seed-3"
BY_NAME = {arm.config.name: arm.config for part in arms(Scale(), 3, RUNS) for arm in part}


def test_every_arm_follows_those_it_needs_and_a_group_is_trained_for_all_seeds() -> None:
    made: list[Path] = []
    for arm in planned(Scale(), [0, 1], RUNS):
        for needed in (arm.config.start, arm.config.teacher):
            assert needed is None or needed in made, arm.config.name
        made.append(arm.config.folder)
    assert len(set(made)) == len(made) == 2 * len(BY_NAME)
    student = RUNS / "seed-0" / student_of(plan.IBOT, plan.RECIPE)
    assert made.index(RUNS / "seed-1" / plan.UNMASKED) < made.index(student)


@pytest.mark.parametrize(
    ("arm", "change"),
    [
        (plan.IBOT, {"supervised": "masked"}),
        (plan.CONTRAST, {"ibot_weight": 0.0, "ema": "none"}),
        (plan.UNMASKED, {"mask_ratio": 0.0}),
        (plan.HEAD_EMA, {"ema": "head"}),
        (plan.NO_EMA, {"ema": "none"}),
    ],
)
def test_arms_of_pretraining_differ_only_in_the_method(arm: str, change: dict[str, Any]) -> None:
    base = BY_NAME[plan.IBOT_PP]
    assert isinstance(base.method, PretrainConfig)
    assert BY_NAME[arm] == replace(base, name=arm, method=replace(base.method, **change))
    assert base.start == SEED / plan.START


@pytest.mark.parametrize("teacher", plan.TEACHERS)
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (plan.RECIPE, {}),
        (plan.MASKED_ALL, {"mask_ratio": 0.75}),
        (plan.MASKED_ONLY, {"mask_ratio": 0.75, "supervised": "masked"}),
        (plan.WARM, {}),
    ],
)
def test_students_differ_in_mask_and_start(teacher: str, kind: str, change: dict[str, Any]) -> None:
    student = BY_NAME[student_of(teacher, kind)]
    recipe = DistillConfig(dino_weight=0.0, head=Scale().head)
    assert student.method == replace(recipe, **change)
    assert student.teacher == SEED / teacher
    assert student.start == (SEED / plan.IBOT if kind == plan.WARM else None)
    # With its teacher's seed it would start from the teacher's first weights.
    assert student.seed != BY_NAME[teacher].seed
