"""The arms: order, shared starts, teachers before students, and what distinguishes each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.reproduce import plan
from training.reproduce.plan import (
    Arm,
    Scale,
    arms,
    fingerprint,
    planned,
    student_of,
    training_config,
)

BY_NAME = {arm.name: arm for part in arms(Scale()) for arm in part}


def test_every_arm_follows_those_it_needs() -> None:
    made: set[tuple[int, str]] = set()
    for seed, arm in planned(Scale(), [0, 1]):
        for needed in (arm.start, arm.teacher):
            assert needed is None or (seed, needed) in made, arm.name
        made.add((seed, arm.name))
    assert len(made) == 2 * len(BY_NAME)


def test_a_group_of_arms_is_trained_for_all_seeds_before_the_next() -> None:
    order = [(seed, arm.name) for seed, arm in planned(Scale(), [0, 1])]
    first = order.index((0, student_of(plan.IBOT, plan.RECIPE)))
    assert order.index((1, plan.UNMASKED)) < first
    assert order.index((0, plan.HEAD_EMA)) > order.index((1, student_of(plan.IBOT_PP, plan.WARM)))


@pytest.mark.parametrize(
    ("base", "arm", "change"),
    [
        (plan.IBOT_PP, plan.IBOT, {"supervised": "masked"}),
        (plan.IBOT_PP, plan.CONTRAST, {"ibot_weight": 0.0, "ema": "none"}),
        (plan.IBOT_PP, plan.UNMASKED, {"mask_ratio": 0.0}),
        (plan.IBOT_PP, plan.HEAD_EMA, {"ema": "head"}),
        (plan.IBOT_PP, plan.NO_EMA, {"ema": "none"}),
    ],
)
def test_arms_of_pretraining_differ_only_in_the_method(
    base: str, arm: str, change: dict[str, Any]
) -> None:
    method = BY_NAME[base].method
    assert isinstance(method, PretrainConfig)
    expected = replace(BY_NAME[base], name=arm, method=replace(method, **change))
    assert BY_NAME[arm] == expected
    assert expected.start == plan.START


@pytest.mark.parametrize("teacher", plan.TEACHERS)
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (plan.RECIPE, {}),
        (plan.MASKED_ALL, {"mask_ratio": 0.75}),
        (plan.MASKED_ONLY, {"mask_ratio": 0.75, "supervised": "masked"}),
    ],
)
def test_students_differ_in_mask_and_in_what_is_supervised(
    teacher: str, kind: str, change: dict[str, Any]
) -> None:
    student = BY_NAME[student_of(teacher, kind)]
    assert isinstance(student.method, DistillConfig)
    assert (student.start, student.teacher) == (None, teacher)
    recipe = DistillConfig(dino_weight=0.0, head=Scale().head)
    assert student.method == replace(recipe, **change)


@pytest.mark.parametrize("teacher", plan.TEACHERS)
def test_a_warm_start_changes_only_the_first_weights(teacher: str) -> None:
    warm, cold = (BY_NAME[student_of(teacher, kind)] for kind in (plan.WARM, plan.RECIPE))
    assert warm == replace(cold, name=warm.name, start=plan.IBOT)


def test_students_do_not_start_from_their_teachers_first_weights(tmp_path: Path) -> None:
    def seed(arm: Arm, number: int) -> int:
        return training_config(Scale(), arm, number, tmp_path).seed

    teacher, student = BY_NAME[plan.IBOT], BY_NAME[student_of(plan.IBOT, plan.RECIPE)]
    assert len({seed(arm, number) for arm in (teacher, student) for number in range(3)}) == 6


def test_other_settings_have_another_fingerprint() -> None:
    assert fingerprint(Scale()) == fingerprint(Scale())
    assert fingerprint(Scale()) != fingerprint(replace(Scale(), distill_steps=3))
