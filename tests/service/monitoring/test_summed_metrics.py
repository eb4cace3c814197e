"""The metrics of several processes become those of one server."""

import re

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from service.monitoring.metrics import Metrics
from service.monitoring.summed_metrics import add_up, counts_only

generate_openmetrics, _ = choose_encoder("application/openmetrics-text")


class Given(Collector):
    """Families as they are."""

    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> list[Metric]:
        return self.families


def values(families: list[Metric]) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(Given(families))
    lines = generate_latest(registry).decode().splitlines()
    rows = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def scraped(num_requests: int, oldest_s: float) -> list[Metric]:
    """What a process that answered so many requests exports."""
    metrics = Metrics()
    for _ in range(num_requests):
        metrics.calls.observe(
            "GET /", "200", 0.5, {"run": 0.25}, model="tiny", trace_id=f"{num_requests:032x}"
        )
    metrics.inflight.set(num_requests)
    metrics.queue_depths = lambda: {"image": num_requests}
    metrics.queue_oldest.set(oldest_s)
    text = generate_openmetrics(metrics.registry).decode()
    return list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def test_counts_and_gauges_add_up_and_the_worst_is_kept() -> None:
    found = values(add_up([scraped(3, 0.5), scraped(4, 2.0)]))
    expected = {
        'tipserve_requests_total{code="200",method="GET /",protocol="http"}': 7,
        'tipserve_request_duration_seconds_bucket{le="0.1",method="GET /"}': 0,
        'tipserve_request_duration_seconds_bucket{le="+Inf",method="GET /"}': 7,
        'tipserve_request_duration_seconds_sum{method="GET /"}': 3.5,
        "tipserve_inflight": 7,
        'tipserve_queue_depth{bucket="image"}': 7,
        "tipserve_queue_oldest_seconds": 2,
    }
    assert found | expected == found
    (build,) = (value for name, value in found.items() if "build_info{" in name)
    assert build == 1


def test_the_newest_exemplars_stay() -> None:
    registry = CollectorRegistry()
    registry.register(Given(add_up([scraped(3, 0.5), scraped(4, 2.0), scraped(0, 0.0)])))
    text = generate_openmetrics(registry).decode()
    assert 'duration_seconds_bucket{le="0.5",method="GET /"} 7.0 # {trace_id="' in text
    assert set(re.findall(r'trace_id="(\w+)"', text)) == {f"{4:032x}"}


def test_one_process_stays_what_it_was_and_an_ended_one_leaves_its_counts() -> None:
    first, second = scraped(3, 0.5), scraped(4, 2.0)
    assert values(add_up([first])) == values(first)
    found = values(add_up([counts_only(first), second]))
    assert found['tipserve_request_duration_seconds_count{method="GET /"}'] == 7
    assert found["tipserve_inflight"] == 4
