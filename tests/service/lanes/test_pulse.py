"""When a lane counts as ready, hung, in repair and dead, and since when none has been ready."""

import pytest

from service.lanes.worker import PATIENCE, LaneState, Pulse, num_ready, unwell_since

LIMIT_S = 30.0


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulse(clock: Clock) -> Pulse:
    return Pulse(clock, LIMIT_S)


def test_a_lane_that_computes_too_long_is_hung_until_it_ends(pulse: Pulse, clock: Clock) -> None:
    pulse.begin(expected_s=1.0)
    clock.now = LIMIT_S
    assert pulse.state.name == "READY"
    clock.now = LIMIT_S + 5
    assert (pulse.state, pulse.unwell_since) == (LaneState.HUNG, LIMIT_S)
    pulse.end()
    assert (pulse.state, pulse.unwell_since) == (LaneState.READY, None)


def test_a_large_batch_has_more_time(pulse: Pulse, clock: Clock) -> None:
    pulse.begin(expected_s=LIMIT_S)
    clock.now = PATIENCE * LIMIT_S
    assert pulse.state.name == "READY"
    clock.now += 1
    assert pulse.state.name == "HUNG"


def test_a_failure_lasts_from_its_first_time_until_something_comes_out(
    pulse: Pulse, clock: Clock
) -> None:
    for clock.now in (3.0, 4.0, 5.0):
        pulse.begin(1.0)
        pulse.fail()
    assert (pulse.state, pulse.unwell_since) == (LaneState.REPAIR, 3.0)
    pulse.begin(1.0)
    pulse.end()
    assert pulse.state.name == "READY"


def test_a_batch_that_fails_is_not_yet_the_lanes_fault(pulse: Pulse) -> None:
    pulse.begin(1.0)
    pulse.rest()
    assert pulse.state.name == "READY"


def test_what_remains_of_a_run(pulse: Pulse, clock: Clock) -> None:
    assert pulse.remaining_s == 0
    pulse.begin(expected_s=2.0)
    clock.now = 0.5
    assert pulse.remaining_s == 1.5
    clock.now = 9
    assert pulse.remaining_s == 0


def test_together_lanes_are_unwell_once_the_last_is(clock: Clock) -> None:
    lanes = [Pulse(clock, LIMIT_S) for _ in range(2)]
    lanes[0].die()
    assert (num_ready(lanes), unwell_since(lanes)) == (1, None)
    clock.now = 7
    lanes[1].fail()
    assert (num_ready(lanes), unwell_since(lanes)) == (0, 7)
    assert unwell_since([]) is None
