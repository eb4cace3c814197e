"""Capacity plans: queueing formulas, measured costs, and the replicas they lead to."""

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

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

# Costs from files and from a server's metrics.

SMALL = Cost("image 224x224", 256, 0.01, 0.09)
LARGE = Cost("image 448x448", 1024, 0.04, 0.50)
CURVES = Curves(
    model="m",
    machine="here",
    date="2026-11-25",
    how="by hand",
    runtime="onnx fp32",
    images=(SMALL, LARGE),
    text=Cost("text 8", 8, 0.01, 0.002),
)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    path.write_text(CURVES.to_json(), encoding="utf-8")
    assert Curves.read(path) == CURVES


@pytest.mark.parametrize("path", sorted(MEASURED.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_kept_here_grows_with_the_image(path: Path) -> None:
    costs = [cost.alone_s for cost in Curves.read(path).images]
    assert len(costs) > 2
    assert costs == sorted(costs)


@pytest.mark.parametrize("text", ["{}", "[1]", "nonsense", '{"images": [], "text": {}}'])
def test_another_file_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "curves.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CurvesError, match="holds invalid costs"):
        Curves.read(path)


def test_costs_below_nothing_are_an_error() -> None:
    with pytest.raises(CurvesError, match="invalid costs"):
        replace(SMALL, slope_s=-0.1)


def test_between_two_sizes_attention_is_counted() -> None:
    middle = CURVES.image(336)
    assert (middle.label, middle.patches) == ("image 336x336", 576)
    # a * n + b * n^2 through both: b = (0.54 / 1024 - 0.1 / 256) / (1024 - 256)
    quadratic = (0.54 / 1024 - 0.10 / 256) / 768
    expected = 576 * (0.10 / 256 + quadratic * (576 - 256))
    assert middle.alone_s == pytest.approx(expected)
    assert SMALL.alone_s < middle.alone_s < LARGE.alone_s
    assert CURVES.image(448) is LARGE


def test_beyond_what_was_measured_nothing_is_made_up() -> None:
    with pytest.raises(CurvesError, match="896 px is outside the measured range"):
        CURVES.image(896)


@pytest.fixture
def server() -> Iterator[str]:
    """Serve the two routes of the service, with its metrics as text."""
    from prometheus_client import generate_latest  # noqa: PLC0415 - only here

    metrics = Metrics()
    costs = {
        "image 112x112": (0.001, 0.002),
        "image 112x154": (0.001, 0.003),
        "text 8": (0.0005, 0.0001),
    }
    report = LaneReport(model="student", states={"ready": 2}, costs=costs)
    metrics.watch_lanes(lambda: [report])
    model = {"id": "student", "patch_size": 14, "runtime": "openvino", "precision": "bf16"}
    bodies = {
        "/v1/models": json.dumps({"data": [model]}).encode(),
        "/metrics": generate_latest(metrics.registry),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    thread.join(30)
    listening.server_close()


def test_a_running_server_tells_its_own(server: str) -> None:
    curves = read_server(server, server)
    assert curves.images == (Cost("image 112x112", 64, 0.001, 0.002),), "squares alone"
    assert curves.text == Cost("text 8", 8, 0.0005, 0.0001)
    assert (curves.model, curves.runtime) == ("student", "openvino bf16")


# Closed forms against textbook values and limits.


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
def test_erlang_c(servers: int, load: float, expected: float) -> None:
    assert erlang_c(servers, load) == pytest.approx(expected, abs=1e-4)


def test_thousands_of_servers_overflow_nothing() -> None:
    assert 0 < erlang_c(5_000, 4_900) < 1


@pytest.mark.parametrize(("servers", "load"), [(0, 1.0), (2, -0.1)])
def test_impossible_queues_are_refused(servers: int, load: float) -> None:
    with pytest.raises(ValueError, match="servers"):
        erlang_c(servers, load)


def test_one_exponential_server() -> None:
    queue = Queue(servers=1, rate=8.0, service_s=0.1)
    assert queue.mean_wait_s == pytest.approx(0.4)  # rho / (mu - lambda)
    assert queue.wait_s(0.99) == pytest.approx(math.log(0.8 / 0.01) / 2)
    assert queue.wait_s(0.1) == 0.0, "a fifth does not wait at all"


def test_service_without_variation_halves_the_wait() -> None:
    # Pollaczek and Khinchine, for one server.
    assert Queue(servers=1, rate=8.0, service_s=0.1, service_cv2=0).mean_wait_s == pytest.approx(
        0.2
    )


def test_too_much_waits_for_ever() -> None:
    queue = Queue(servers=2, rate=21.0, service_s=0.1)
    assert math.isinf(queue.mean_wait_s)
    assert math.isinf(queue.wait_s(0.5))


def test_more_servers_can_be_used_more() -> None:
    shares = [highest_utilisation(servers, 0.99, 1.0) for servers in (1, 2, 8, 32)]
    assert shares == sorted(shares)
    assert 0.05 < shares[0] < shares[-1] < 1.0
    queue = Queue(servers=8, rate=8 * shares[2], service_s=1.0, service_cv2=0.0)
    assert queue.wait_s(0.99) == pytest.approx(1.0, rel=1e-6)


# Capacity plans: by hand, at limits, and as printed by the command.

PLAN_CURVES = Curves(
    model="m",
    machine="here",
    date="2026-11-25",
    how="by hand",
    runtime="onnx fp32",
    images=(Cost("image 448x448", 1024, 0.0, 0.05),),
    text=Cost("text 8", 8, 0.02, 0.002),
    outside_s=0.01,
)
DEMAND = Demand(rate=100.0, side=448, limit_s=0.12, lanes=4)


def test_each_step_by_hand() -> None:
    found = plan(DEMAND, PLAN_CURVES)
    assert found.image_s == pytest.approx(0.06)
    assert found.request_s == pytest.approx(0.06)
    assert found.wait_s == pytest.approx(0.06)
    assert found.utilisation == pytest.approx(highest_utilisation(4, 0.99, 1.0))
    assert found.lanes_busy == pytest.approx(6.0)
    assert found.replicas == math.ceil(6.0 / (4 * found.utilisation)) == 3


def test_new_names_take_lanes_and_leave_less_time_to_wait() -> None:
    found = plan(replace(DEMAND, new_text_share=0.4, texts=10), PLAN_CURVES)
    assert found.text_s == pytest.approx(0.4 * 0.04)
    assert found.request_s == pytest.approx(0.076)
    assert found.wait_s == pytest.approx(0.06), (
        "they run in parallel with the image, which takes longer"
    )
    assert plan(replace(DEMAND, new_text_share=0.4, texts=35), PLAN_CURVES).wait_s < found.wait_s


@pytest.mark.parametrize(("zones", "expected"), [(1, 3), (2, 6), (3, 6), (4, 4)])
def test_the_zones_that_are_left_carry_all(zones: int, expected: int) -> None:
    found = plan(replace(DEMAND, zones=zones), PLAN_CURVES)
    assert found.replicas == 3
    assert found.replicas_with_zone == expected
    if zones > 1:
        assert found.replicas_with_zone * (zones - 1) / zones >= found.replicas


def test_more_is_never_fewer_replicas() -> None:
    tighter = [replace(DEMAND, limit_s=limit_s) for limit_s in (1.0, 0.2, 0.12, 0.09, 0.07)]
    counts = [plan(demand, PLAN_CURVES).replicas for demand in tighter]
    assert counts == sorted(counts)
    counts = [plan(replace(DEMAND, margin=margin), PLAN_CURVES).replicas for margin in (0, 0.5, 2)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_a_limit_that_no_machine_keeps_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"takes 0\.060 s without any waiting"):
        plan(replace(DEMAND, limit_s=0.05), PLAN_CURVES)


@pytest.mark.parametrize("name", ["rate", "limit_s", "lanes", "zones"])
def test_nothing_is_no_demand(name: str) -> None:
    with pytest.raises(PlanError, match="positive"):
        plan(replace(DEMAND, **{name: 0}), PLAN_CURVES)


def test_the_command_shows_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--curves student --rate 500 --side 448 --p99-ms 200 --zones 3"
    assert capacity.main(arguments.split()) == 0
    told = capsys.readouterr().out
    for step in ("an image", "waiting", "busy", "lanes", "replicas", "zones", "| 16 |"):
        assert f"\n{step}" in told or told.startswith(step)


def test_the_cost_of_an_image_outside_the_lanes_can_be_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--curves", "student", "--rate", "500", "--side", "448", "--p99-ms", "200"]
    assert capacity.main([*arguments, "--outside-ms", "30"]) == 0
    assert "and 30.0 ms outside it" in capsys.readouterr().out


def test_the_command_says_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert capacity.main(["--curves", "b14", "--rate", "1", "--side", "448", "--p99-ms", "50"]) == 1
    assert "ask for smaller images" in capsys.readouterr().err
    assert (
        capacity.main(["--curves", "b14", "--rate", "1", "--side", "1400", "--p99-ms", "50"]) == 1
    )
    assert "outside the measured range" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        capacity.main(["--server", "x", "--rate", "1", "--side", "448", "--p99-ms", "50"])
