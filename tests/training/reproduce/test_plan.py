"""The arms: order, shared starts, teachers before students, and what distinguishes each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.reproduce import plan
from training.reproduce.plan import Scale, arms, planned, student_of, training_config

BY_NAME = {arm.name: arm for part in arms(Scale()) for arm in part}


def test_every_arm_follows_those_it_needs_and_a_group_is_trained_for_all_seeds() -> None:
    made: list[tuple[int, str]] = []
    for seed, arm in planned(Scale(), [0, 1]):
        for needed in (arm.start, arm.teacher):
            assert needed is None or (seed, needed) in made, arm.name
        made.append((seed, arm.name))
    assert len(set(made)) == len(made) == 2 * len(BY_NAME)
    assert made.index((1, plan.UNMASKED)) < made.index((0, student_of(plan.IBOT, plan.RECIPE)))


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
    assert base.start == plan.START


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
    assert student.teacher == teacher
    assert student.start == (plan.IBOT if kind == plan.WARM else None)


def test_students_do_not_start_from_their_teachers_first_weights(tmp_path: Path) -> None:
    pair = BY_NAME[plan.IBOT], BY_NAME[student_of(plan.IBOT, plan.RECIPE)]
    configs = [training_config(Scale(), arm, number, tmp_path) for arm in pair for number in (0, 1)]
    assert len({config.seed for config in configs}) == 4
