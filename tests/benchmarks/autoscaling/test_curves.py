"""Costs from files and from a server's own metrics."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.autoscaling.curves import MEASURED, Cost, Curves, CurvesError, read_server
from service.monitoring.metrics import LaneReport, Metrics

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
    with pytest.raises(CurvesError, match="holds no costs"):
        Curves.read(path)


def test_costs_below_nothing_are_an_error() -> None:
    with pytest.raises(CurvesError, match="no costs"):
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
    with pytest.raises(CurvesError, match="896 px was not measured"):
        CURVES.image(896)


@pytest.fixture
def server() -> Iterator[str]:
    """Answers the two routes as the service does, with its own metrics' text."""
    from prometheus_client import generate_latest  # noqa: PLC0415 - only here

    metrics = Metrics()
    costs = {
        "image 112x112": (0.001, 0.002),
        "image 112x154": (0.001, 0.003),
        "text 8": (0.0005, 0.0001),
    }
    report = LaneReport(model="student", states={"ready": 2}, costs=costs)
    metrics.lanes.reports = lambda: [report]
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
