"""The sum of a capacity plan: by hand, in its limits, and as the command prints it."""

import math
from dataclasses import replace

import pytest

from benchmarks import capacity
from benchmarks.autoscaling.curves import Cost, Curves
from benchmarks.autoscaling.plan import Demand, PlanError, plan
from benchmarks.autoscaling.queueing import highest_utilisation

CURVES = Curves(
    model="m",
    machine="here",
    date="2026-11-25",
    how="by hand",
    runtime="onnx fp32",
    images=(Cost("image 448x448", 1024, 0.0, 0.05),),
    text=Cost("text 8", 8, 0.02, 0.002),
    beside_s=0.01,
)
DEMAND = Demand(rate=100.0, side=448, limit_s=0.12, lanes=4)


def test_each_step_by_hand() -> None:
    found = plan(DEMAND, CURVES)
    assert found.image_s == pytest.approx(0.06)
    assert found.request_s == pytest.approx(0.06)
    assert found.wait_s == pytest.approx(0.06)
    assert found.utilisation == pytest.approx(highest_utilisation(4, 0.99, 1.0))
    assert found.lanes_busy == pytest.approx(6.0)
    assert found.replicas == math.ceil(6.0 / (4 * found.utilisation)) == 3


def test_new_names_take_lanes_and_leave_less_time_to_wait() -> None:
    found = plan(replace(DEMAND, new_text_share=0.4, texts=10), CURVES)
    assert found.text_s == pytest.approx(0.4 * 0.04)
    assert found.request_s == pytest.approx(0.076)
    assert found.wait_s == pytest.approx(0.06), "they run beside the image, which takes longer"
    assert plan(replace(DEMAND, new_text_share=0.4, texts=35), CURVES).wait_s < found.wait_s


@pytest.mark.parametrize(("zones", "expected"), [(1, 3), (2, 6), (3, 6), (4, 4)])
def test_the_zones_that_are_left_carry_all(zones: int, expected: int) -> None:
    found = plan(replace(DEMAND, zones=zones), CURVES)
    assert found.replicas == 3
    assert found.replicas_with_zone == expected
    if zones > 1:
        assert found.replicas_with_zone * (zones - 1) / zones >= found.replicas


def test_more_is_never_fewer_replicas() -> None:
    tighter = [replace(DEMAND, limit_s=limit_s) for limit_s in (1.0, 0.2, 0.12, 0.09, 0.07)]
    counts = [plan(demand, CURVES).replicas for demand in tighter]
    assert counts == sorted(counts)
    counts = [plan(replace(DEMAND, margin=margin), CURVES).replicas for margin in (0, 0.5, 2)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_a_limit_that_no_machine_keeps_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"takes 0\.060 s without any waiting"):
        plan(replace(DEMAND, limit_s=0.05), CURVES)


@pytest.mark.parametrize("name", ["rate", "limit_s", "lanes", "zones"])
def test_nothing_is_no_demand(name: str) -> None:
    with pytest.raises(PlanError, match="positive"):
        plan(replace(DEMAND, **{name: 0}), CURVES)


def test_the_command_shows_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--curves student --rate 500 --side 448 --p99-ms 200 --zones 3"
    assert capacity.main(arguments.split()) == 0
    told = capsys.readouterr().out
    for step in ("an image", "waiting", "busy", "lanes", "replicas", "zones", "| 16 |"):
        assert f"\n{step}" in told or told.startswith(step)


def test_what_a_image_costs_beside_the_lanes_can_be_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--curves", "student", "--rate", "500", "--side", "448", "--p99-ms", "200"]
    assert capacity.main([*arguments, "--beside-ms", "30"]) == 0
    assert "and 30.0 ms beside it" in capsys.readouterr().out


def test_the_command_says_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert capacity.main(["--curves", "b14", "--rate", "1", "--side", "448", "--p99-ms", "50"]) == 1
    assert "ask for smaller images" in capsys.readouterr().err
    assert (
        capacity.main(["--curves", "b14", "--rate", "1", "--side", "1400", "--p99-ms", "50"]) == 1
    )
    assert "was not measured" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        capacity.main(["--server", "x", "--rate", "1", "--side", "448", "--p99-ms", "50"])
