"""The metrics of several processes become those of one server."""

from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from service.monitoring.metrics import READINGS, LaneReport, Metrics
from service.monitoring.summed_metrics import LARGEST, add_up, counts_only


class Given(Collector):
    """Families as they are."""

    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> list[Metric]:
        return self.families


def as_text(families: list[Metric]) -> str:
    registry = CollectorRegistry()
    registry.register(Given(families))
    return generate_latest(registry).decode()


def scraped(metrics: Metrics) -> list[Metric]:
    return list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))


def process(num_requests: int, oldest_s: float) -> Metrics:
    metrics = Metrics()
    for _ in range(num_requests):
        metrics.calls.observe("GET /", "200", 0.5, {"run": 0.25}, model="tiny")
    metrics.inflight.set(num_requests)
    metrics.queue_depths = lambda: {"image": num_requests}
    metrics.queue_oldest.set(oldest_s)
    report = LaneReport(
        model="tiny",
        states={"ready": 2},
        batches={1: (3, 1.5)},
    )
    metrics.lane_reports = lambda: [report]
    return metrics


def lines(text: str, names: Iterable[str]) -> dict[str, float]:
    return {
        name: float(line.rpartition(" ")[2])
        for name in names
        for line in text.splitlines()
        if line.startswith(name + " ")
    }


def test_counts_and_gauges_add_up_and_the_worst_is_kept() -> None:
    text = as_text(add_up([scraped(process(3, 0.5)), scraped(process(4, 2.0))]))
    expected = {
        'tipserve_requests_total{code="200",method="GET /",protocol="http"}': 7,
        'tipserve_request_duration_seconds_bucket{le="0.1",method="GET /"}': 0,
        'tipserve_request_duration_seconds_bucket{le="+Inf",method="GET /"}': 7,
        'tipserve_request_duration_seconds_sum{method="GET /"}': 3.5,
        'tipserve_model_batches_total{model="tiny"}': 6,
        "tipserve_inflight": 7,
        'tipserve_queue_depth{bucket="image"}': 7,
        'tipserve_lanes{model="tiny",state="ready"}': 4,
        "tipserve_queue_oldest_seconds": 2,
    }
    assert lines(text, expected) == expected
    assert 'tipserve_build_info{python="' in text
    assert all(line.endswith("} 1.0") for line in text.splitlines() if "build_info{" in line)


def test_one_process_stays_what_it_was() -> None:
    metrics = process(3, 0.5)
    # Memory and CPU time change from one reading to the next.
    text = "".join(
        line + "\n"
        for line in generate_latest(metrics.registry).decode().splitlines()
        if "process_" not in line
    )
    again = as_text(add_up([list(text_string_to_metric_families(text))]))
    assert sorted(again.splitlines()) == sorted(text.splitlines())


def test_an_ended_process_leaves_its_counts_only() -> None:
    left = counts_only(scraped(process(3, 0.5)))
    text = as_text(add_up([left, scraped(process(4, 2.0))]))
    expected = {
        'tipserve_requests_total{code="200",method="GET /",protocol="http"}': 7,
        'tipserve_request_duration_seconds_count{method="GET /"}': 7,
        "tipserve_inflight": 4,
    }
    assert lines(text, expected) == expected


@pytest.mark.parametrize("name", sorted(LARGEST))
def test_every_exception_is_a_gauge_that_exists(name: str) -> None:
    metrics = Metrics()
    metrics.record_first_ready()
    kinds = {family.name: family.type for family in metrics.registry.collect()}
    assert kinds[name] == "gauge"
    assert all(reading.startswith("tipserve_gpu_") for reading, _, _ in READINGS)
