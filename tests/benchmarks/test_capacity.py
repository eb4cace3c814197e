"""Capacity plans: queueing formulas, measured costs, and the replicas they lead to."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from benchmarks import capacity
from benchmarks.capacity import (
    MEASURED,
    Cost,
    Curves,
    CurvesError,
    Demand,
    PlanError,
    Queue,
    erlang_c,
    highest_utilisation,
    plan,
    read_server,
)
from service.monitoring.metrics import LaneReport, Metrics


def curves(text: Cost, *images: Cost, outside_s: float = 0.0) -> Curves:
    return Curves(
        model="m",
        machine="here",
        date="2026-11-25",
        how="by hand",
        runtime="onnx fp32",
        images=images,
        text=text,
        outside_s=outside_s,
    )


SMALL = Cost("image 224x224", 256, 0.01, 0.09)
LARGE = Cost("image 448x448", 1024, 0.04, 0.50)
CURVES = curves(Cost("text 8", 8, 0.01, 0.002), SMALL, LARGE)


def test_costs_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    path.write_text(CURVES.to_json(), encoding="utf-8")
    assert Curves.read(path) == CURVES


@pytest.mark.parametrize("path", sorted(MEASURED.glob("*.json")), ids=lambda path: path.stem)
def test_measured_costs_grow_with_the_image(path: Path) -> None:
    costs = [cost.alone_s for cost in Curves.read(path).images]
    assert len(costs) > 2
    assert costs == sorted(costs)


@pytest.mark.parametrize("text", ["{}", "[1]", "nonsense", '{"images": [], "text": {}}'])
def test_invalid_costs_are_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "curves.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CurvesError, match="holds invalid costs"):
        Curves.read(path)
    with pytest.raises(CurvesError, match="invalid costs"):
        replace(SMALL, slope_s=-0.1)


def test_costs_are_interpolated_with_attention_and_never_extrapolated() -> None:
    middle = CURVES.image(336)
    assert (middle.label, middle.patches) == ("image 336x336", 576)
    # a * n + b * n^2 through both: b = (0.54 / 1024 - 0.1 / 256) / (1024 - 256)
    quadratic = (0.54 / 1024 - 0.10 / 256) / 768
    expected = 576 * (0.10 / 256 + quadratic * (576 - 256))
    assert middle.alone_s == pytest.approx(expected)
    assert SMALL.alone_s < middle.alone_s < LARGE.alone_s
    assert CURVES.image(448) is LARGE
    with pytest.raises(CurvesError, match="896 px is outside the measured range"):
        CURVES.image(896)


def test_a_running_server_reports_its_costs(tmp_path: Path) -> None:
    metrics = Metrics()
    costs = {
        "image 112x112": (0.001, 0.002),
        "image 112x154": (0.001, 0.003),
        "text 8": (0.0005, 0.0001),
    }
    report = LaneReport(model="student", states={"ready": 2}, costs=costs)
    metrics.watch_lanes(lambda: [report])
    model = {"id": "student", "patch_size": 14, "runtime": "openvino", "precision": "bf16"}
    # Files with the answers of the two routes.
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").write_text(json.dumps({"data": [model]}))
    (tmp_path / "metrics").write_bytes(generate_latest(metrics.registry))
    found = read_server(tmp_path.as_uri(), tmp_path.as_uri())
    assert found.images == (Cost("image 112x112", 64, 0.001, 0.002),), "only squares"
    assert found.text == Cost("text 8", 8, 0.0005, 0.0001)
    assert (found.model, found.runtime) == ("student", "openvino bf16")


@pytest.mark.parametrize(
    ("servers", "load", "expected"),
    [
        (1, 0.7, 0.7),  # M/M/1: the share of time that the server is busy
        (2, 1.0, 1 / 3),
        (10, 8.0, 0.4092),
        (3, 0.0, 0.0),
        (2, 2.5, 1.0),
    ],
)
def test_erlang_c_has_textbook_values(servers: int, load: float, expected: float) -> None:
    assert erlang_c(servers, load) == pytest.approx(expected, abs=1e-4)
    assert 0 < erlang_c(5_000, 4_900) < 1, "no overflow"


@pytest.mark.parametrize(("servers", "load"), [(0, 1.0), (2, -0.1)])
def test_impossible_queues_are_refused(servers: int, load: float) -> None:
    with pytest.raises(ValueError, match="servers"):
        erlang_c(servers, load)


def test_waits_of_one_server_and_of_an_overloaded_queue() -> None:
    queue = Queue(servers=1, rate=8.0, service_s=0.1)
    assert queue.mean_wait_s == pytest.approx(0.4)  # rho / (mu - lambda)
    assert queue.wait_s(0.99) == pytest.approx(math.log(0.8 / 0.01) / 2)
    assert queue.wait_s(0.1) == 0.0, "a fifth does not wait"
    # Pollaczek and Khinchine: a constant service time halves the wait.
    assert replace(queue, service_cv2=0).mean_wait_s == pytest.approx(0.2)
    overloaded = Queue(servers=2, rate=21.0, service_s=0.1)
    assert math.isinf(overloaded.mean_wait_s)
    assert math.isinf(overloaded.wait_s(0.5))


def test_the_highest_utilisation_rises_with_the_servers() -> None:
    shares = [highest_utilisation(servers, 0.99, 1.0) for servers in (1, 2, 8, 32)]
    assert shares == sorted(shares)
    assert 0.05 < shares[0] < shares[-1] < 1.0
    queue = Queue(servers=8, rate=8 * shares[2], service_s=1.0, service_cv2=0.0)
    assert queue.wait_s(0.99) == pytest.approx(1.0, rel=1e-6)


PLAN_CURVES = curves(
    Cost("text 8", 8, 0.02, 0.002), Cost("image 448x448", 1024, 0.0, 0.05), outside_s=0.01
)
DEMAND = Demand(rate=100.0, side=448, limit_s=0.12, lanes=4)


def test_each_step_equals_a_calculation_by_hand() -> None:
    found = plan(DEMAND, PLAN_CURVES)
    assert found.image_s == pytest.approx(0.06)
    assert found.request_s == pytest.approx(0.06)
    assert found.wait_s == pytest.approx(0.06)
    assert found.utilisation == pytest.approx(highest_utilisation(4, 0.99, 1.0))
    assert found.lanes_busy == pytest.approx(6.0)
    assert found.replicas == math.ceil(6.0 / (4 * found.utilisation)) == 3


def test_new_texts_take_lanes_and_leave_less_time_to_wait() -> None:
    found = plan(replace(DEMAND, new_text_share=0.4, texts=10), PLAN_CURVES)
    assert found.text_s == pytest.approx(0.4 * 0.04)
    assert found.request_s == pytest.approx(0.076)
    assert found.wait_s == pytest.approx(0.06), "they run in parallel with the longer image"
    assert plan(replace(DEMAND, new_text_share=0.4, texts=35), PLAN_CURVES).wait_s < found.wait_s


@pytest.mark.parametrize(("zones", "expected"), [(1, 3), (2, 6), (3, 6), (4, 4)])
def test_the_remaining_zones_carry_the_load(zones: int, expected: int) -> None:
    found = plan(replace(DEMAND, zones=zones), PLAN_CURVES)
    assert found.replicas == 3
    assert found.replicas_with_zone == expected
    if zones > 1:
        assert found.replicas_with_zone * (zones - 1) / zones >= found.replicas


def test_a_harder_demand_never_needs_fewer_replicas() -> None:
    tighter = [replace(DEMAND, limit_s=limit_s) for limit_s in (1.0, 0.2, 0.12, 0.09, 0.07)]
    counts = [plan(demand, PLAN_CURVES).replicas for demand in tighter]
    assert counts == sorted(counts)
    counts = [plan(replace(DEMAND, margin=margin), PLAN_CURVES).replicas for margin in (0, 0.5, 2)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"limit_s": 0.05}, r"takes 0\.060 s without any waiting"),
        *(({name: 0}, "positive") for name in ("rate", "limit_s", "lanes", "zones")),
    ],
)
def test_an_impossible_demand_is_an_error(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        plan(replace(DEMAND, **changed), PLAN_CURVES)


USUAL = "--curves student --rate 500 --side 448 --p99-ms 200"


def test_the_command_shows_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert capacity.main(f"{USUAL} --zones 3 --outside-ms 30".split()) == 0
    output = "\n" + capsys.readouterr().out
    assert "and 30.0 ms outside it" in output
    for step in ("an image", "waiting", "busy", "lanes", "replicas", "zones", "| 16 |"):
        assert f"\n{step}" in output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--curves b14 --p99-ms 50", "ask for smaller images"),
        ("--curves b14 --side 1400", "outside the measured range"),
    ],
)
def test_the_command_reports_an_impossible_demand(
    capsys: pytest.CaptureFixture[str], arguments: str, complaint: str
) -> None:
    assert capacity.main([*USUAL.split(), *arguments.split()]) == 1
    assert complaint in capsys.readouterr().err


def test_a_server_needs_both_addresses() -> None:
    with pytest.raises(SystemExit, match="2"):
        capacity.main([*USUAL.split(), "--server", "x"])
