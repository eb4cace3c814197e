"""Capacity plans: queueing formulas, measured costs, and the replicas they lead to."""

import math
from dataclasses import replace

import pytest

from benchmarks import capacity
from benchmarks.capacity import (
    Cost,
    Costs,
    Demand,
    PlanError,
    fit,
    highest_utilisation,
    plan,
    wait_s,
)

SMALL = Cost("image 224x224", 256, 0.01, 0.09)
LARGE = Cost("image 448x448", 1024, 0.0, 0.05)
COSTS = Costs(
    model="m",
    machine="here",
    date="2026-11-25",
    how="by hand",
    runtime="onnx fp32",
    images=(LARGE,),
    text=Cost("text 8", 8, 0.02, 0.002),
    outside_s=0.01,
)
DEMAND = Demand(rate=100.0, side=448, limit_s=0.12, lanes=4)


def test_costs_are_interpolated_with_attention_and_never_extrapolated() -> None:
    costs = replace(COSTS, images=(SMALL, Cost("image 448x448", 1024, 0.04, 0.50)))
    # a * n + b * n^2 through both: b = (0.54 / 1024 - 0.1 / 256) / (1024 - 256)
    quadratic = (0.54 / 1024 - 0.10 / 256) / 768
    expected = 576 * (0.10 / 256 + quadratic * (576 - 256))
    assert costs.image_s(336) == pytest.approx(expected)
    assert costs.image_s(448) == pytest.approx(0.54)
    with pytest.raises(PlanError, match="896 px is outside the measured range 224, 448"):
        costs.image_s(896)


def test_a_line_is_fitted_whose_intercept_is_not_negative() -> None:
    fitted = fit("text 8", 8, {1: 0.3, 2: 0.5, 4: 0.9})
    assert (fitted.intercept_s, fitted.slope_s) == pytest.approx((0.1, 0.2))
    assert fit("text 8", 8, {1: 0.1, 2: 0.21, 4: 0.43}).intercept_s == 0.0


def test_waits_have_textbook_values() -> None:
    # M/M/1 at 0.8: the p99 of the wait is log(0.8 / 0.01) / (1 - 0.8) services.
    assert wait_s(1, 0.8, 0.99, 1.0) == pytest.approx(math.log(80) / 0.2)
    # A constant service time halves the wait; a fifth of the requests does not wait.
    assert wait_s(1, 0.8, 0.99, 0.0) == pytest.approx(math.log(80) / 0.4)
    assert wait_s(1, 0.8, 0.1, 1.0) == 0.0
    # Two servers with a load of 1: a third waits.
    assert wait_s(2, 1.0, 0.99, 1.0) == pytest.approx(math.log(100 / 3))
    assert math.isinf(wait_s(2, 2.0, 0.99, 0.0))
    assert wait_s(5_000, 4_900, 0.99, 0.0) > 0, "no overflow"


def test_the_highest_utilisation_rises_with_the_servers() -> None:
    shares = [highest_utilisation(servers, 1.0) for servers in (1, 2, 8, 32)]
    assert shares == sorted(shares)
    assert 0.05 < shares[0] < shares[-1] < 1.0
    assert wait_s(8, 8 * shares[2], 0.99, 0.0) == pytest.approx(1.0, rel=1e-6)


def test_the_replicas_equal_a_calculation_by_hand() -> None:
    # An image takes 60 ms and may wait as long; 6 lanes are busy.
    replicas, _ = plan(DEMAND, COSTS)
    assert replicas == math.ceil(6.0 / (4 * highest_utilisation(4, 1.0))) == 3
    for zones, expected in ((2, 6), (3, 6), (4, 4)):
        assert plan(replace(DEMAND, zones=zones), COSTS)[0] == expected


def test_a_harder_demand_never_needs_fewer_replicas() -> None:
    for name, values in (
        ("limit_s", (1.0, 0.2, 0.12, 0.09, 0.07)),
        ("margin", (0.0, 0.5, 2.0)),
        ("texts", (0, 10, 35)),
    ):
        demands = [replace(DEMAND, new_text_share=0.4, **{name: value}) for value in values]  # type: ignore[arg-type]
        counts = [plan(demand, COSTS)[0] for demand in demands]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1]


def test_numbers_must_be_positive() -> None:
    for name in ("rate", "limit_s", "lanes", "zones"):
        with pytest.raises(PlanError, match="positive"):
            plan(replace(DEMAND, **{name: 0}), COSTS)


def test_the_command_shows_each_step_or_why_there_is_no_plan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = "--costs student --rate 500 --side 448 --p99-ms 200"
    assert capacity.main(f"{usual} --zones 3".split()) == 0
    output = "\n" + capsys.readouterr().out
    for step in ("an image", "waiting", "busy", "lanes", "replicas", "zones", "| 16 |"):
        assert f"\n{step}" in output
    for arguments, complaint in (
        ("--costs b14 --p99-ms 50", "ask for smaller images"),
        ("--costs b14 --side 1400", "outside the measured range"),
    ):
        assert capacity.main(f"{usual} {arguments}".split()) == 1
        assert complaint in capsys.readouterr().err
