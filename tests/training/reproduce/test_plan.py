"""The arms: order, shared starts, teachers before students, and what distinguishes each."""

from pathlib import Path

from training.reproduce import plan
from training.reproduce.plan import Scale, arms, planned, student_of

RUNS = Path("runs")
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
