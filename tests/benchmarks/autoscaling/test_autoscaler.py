"""The controller's decisions against cases worked out by hand from Kubernetes' own rules."""

from dataclasses import replace

import pytest

from benchmarks.autoscaling.autoscaler import (
    Controller,
    Policy,
    Rules,
    ScalerSettings,
    Target,
)

WAIT = Target("wait", "Value", 0.5)
BUSY = Target("busy", "Value", 0.7)
FREE = Rules(stabilization_s=0, policies=(Policy("Percent", 1000, 15),))
SETTINGS = ScalerSettings(min_replicas=2, max_replicas=20, targets=(WAIT,), up=FREE, down=FREE)


def decide(settings: ScalerSettings, current: int, *values: float, ready: int | None = None) -> int:
    count = current if ready is None else ready
    return Controller(settings).decide(0.0, current, count, values)


@pytest.mark.parametrize(
    ("current", "value", "expected"),
    [
        (4, 0.5, 4),
        (4, 0.549, 4),  # within a tenth
        (4, 0.451, 4),
        (4, 0.56, 5),  # ceil(4 * 1.12)
        (4, 1.0, 8),
        (4, 0.25, 2),
        (4, 0.0, 2),  # no less than the minimum
        (4, 50.0, 20),
    ],
)
def test_ratio_tolerance_and_bounds(current: int, value: float, expected: int) -> None:
    assert decide(SETTINGS, current, value) == expected


def test_only_ready_pods_are_multiplied() -> None:
    assert decide(SETTINGS, 8, 1.0, ready=4) == 8
    assert decide(SETTINGS, 8, 1.5, ready=4) == 12


def test_the_most_that_any_metric_asks_for_counts() -> None:
    both = replace(SETTINGS, targets=(WAIT, BUSY))
    assert decide(both, 4, 0.0, 0.7) == 4, "waits alone would shrink it"
    assert decide(both, 4, 1.0, 0.7) == 8


def test_an_average_value_is_divided_by_the_replicas() -> None:
    # A wait of 2 s would ask for 4 replicas, whether there are 2 of them or 20.
    average = replace(SETTINGS, targets=(Target("wait", "AverageValue", 0.5),))
    assert decide(average, 2, 2.0) == 4
    assert decide(average, 20, 2.0) == 4


def test_down_waits_for_the_whole_window() -> None:
    down = Rules(stabilization_s=300, policies=(Policy("Percent", 100, 15),))
    controller = Controller(replace(SETTINGS, down=down))
    assert controller.decide(0, 10, 10, [0.5]) == 10
    quiet = [controller.decide(t, 10, 10, [0.0]) for t in range(15, 316, 15)]
    assert quiet[:-1] == [10] * 20
    assert quiet[-1] == 2


def test_up_takes_the_least_of_its_window() -> None:
    up = replace(FREE, stabilization_s=30)
    controller = Controller(replace(SETTINGS, up=up))
    assert controller.decide(0, 4, 4, [0.5]) == 4
    assert controller.decide(15, 4, 4, [2.0]) == 4
    assert controller.decide(31, 4, 4, [1.0]) == 8


def test_policies_count_from_where_their_period_began() -> None:
    up = Rules(stabilization_s=0, policies=(Policy("Percent", 100, 60), Policy("Pods", 3, 60)))
    controller = Controller(replace(SETTINGS, up=up))
    assert controller.decide(0, 2, 2, [9.0]) == 5, "three pods are more than the double of two"
    assert controller.decide(15, 5, 2, [9.0]) == 5
    assert controller.decide(61, 5, 5, [9.0]) == 10
    least = Controller(replace(SETTINGS, up=replace(up, select="Min")))
    assert least.decide(0, 2, 2, [9.0]) == 4


def test_down_by_one_a_minute() -> None:
    down = Rules(stabilization_s=0, policies=(Policy("Pods", 1, 60),))
    controller = Controller(replace(SETTINGS, down=down))
    counts, current = [], 6
    for time_s in range(0, 136, 15):
        current = controller.decide(time_s, current, current, [0.0])
        counts.append(current)
    assert counts == [5, 5, 5, 5, 4, 4, 4, 4, 3, 3]


def test_percents_are_rounded_up_on_the_way_up_and_cut_off_on_the_way_down() -> None:
    half = Rules(stabilization_s=0, policies=(Policy("Percent", 50, 60),))
    both = replace(SETTINGS, up=half, down=half)
    assert decide(both, 3, 9.0) == 5
    assert decide(both, 5, 0.0) == 2


def test_a_direction_can_be_turned_off() -> None:
    never = replace(SETTINGS, down=replace(FREE, select="Disabled"))
    assert decide(never, 6, 0.0) == 6
