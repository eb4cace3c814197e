"""Seconds a step, by a clock that only the test moves."""

import pytest

from training.pace import Pace


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take(pace: Pace, clock: Clock, *, wait_s: float, work_s: float) -> None:
    """One step."""
    with pace.waiting():
        clock.now_s += wait_s
    clock.now_s += work_s


def test_waiting_is_a_part_of_the_step(clock: Clock) -> None:
    pace = Pace(clock)
    take(pace, clock, wait_s=1.0, work_s=3.0)
    take(pace, clock, wait_s=0.0, work_s=2.0)
    assert pace.per_step() == {"step_s": 3.0, "wait_s": 0.5}
    take(pace, clock, wait_s=0.25, work_s=0.75)
    assert pace.per_step() == {"step_s": 1.0, "wait_s": 0.25}


def test_what_is_no_step_is_left_out(clock: Clock) -> None:
    pace = Pace(clock)
    take(pace, clock, wait_s=1.0, work_s=1.0)
    clock.now_s += 60.0  # such as a validation
    pace.restart()
    take(pace, clock, wait_s=0.5, work_s=0.5)
    assert pace.per_step() == {"step_s": 1.0, "wait_s": 0.5}
    assert pace.per_step() == {"step_s": 0.0, "wait_s": 0.0}
