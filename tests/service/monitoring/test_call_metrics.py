"""Calls are counted as the library would count them, also when many threads count at once."""

import threading

import pytest
from prometheus_client import CollectorRegistry, Histogram

from service.monitoring.metrics import SECONDS, CallCollector


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def calls(registry: CollectorRegistry) -> CallCollector:
    collector = CallCollector()
    registry.register(collector)
    return collector


def test_durations_fall_into_the_buckets_of_the_librarys_own_histogram(
    registry: CollectorRegistry, calls: CallCollector
) -> None:
    seconds = [0.0, *SECONDS, *(s * 1.01 for s in SECONDS), 1e6]
    reference = Histogram("reference", "The same.", buckets=SECONDS, registry=registry)
    for duration in seconds:
        calls.observe("GET /x", "200", duration, {})
        reference.observe(duration)
    name = "tipserve_request_duration_seconds"
    bounds = [*map(str, map(float, SECONDS)), "+Inf"]
    for bound in bounds:
        expected = registry.get_sample_value("reference_bucket", {"le": bound})
        labels = {"method": "GET /x", "le": bound}
        assert expected is not None
        assert registry.get_sample_value(f"{name}_bucket", labels) == expected
    for suffix in ("count", "sum"):
        ours = registry.get_sample_value(f"{name}_{suffix}", {"method": "GET /x"})
        assert ours == pytest.approx(registry.get_sample_value(f"reference_{suffix}"))


def test_a_call_counts_once_and_its_stages_by_name(
    registry: CollectorRegistry, calls: CallCollector
) -> None:
    calls.observe("a.B/C", "OK", 0.5, {"queue": 0.125, "run": 0.25})
    calls.observe("other", "UNIMPLEMENTED", None, {})
    sample = registry.get_sample_value
    assert sample("tipserve_requests_total", {"method": "a.B/C", "code": "OK"}) == 1
    assert sample("tipserve_requests_total", {"method": "other", "code": "UNIMPLEMENTED"}) == 1
    assert sample("tipserve_stage_duration_seconds_sum", {"stage": "run"}) == 0.25
    assert sample("tipserve_request_duration_seconds_count", {"method": "other"}) is None


def test_each_model_is_counted_by_protocol_and_all_of_them_together(
    registry: CollectorRegistry, calls: CallCollector
) -> None:
    calls.observe("POST /x", "200", 0.5, {"run": 0.25}, model="a")
    calls.observe("POST /y", "200", 0.5, {"run": 0.25}, model="a")
    calls.observe("s.S/X", "OK", 0.5, {"run": 0.25}, model="a")
    calls.observe("POST /x", "200", 2.0, {"run": 1.0}, model="b")
    calls.observe("POST /x", "404", 0.1, {})
    sample = registry.get_sample_value
    assert sample("tipserve_requests_total", {"method": "POST /x", "code": "200"}) == 2
    assert sample("tipserve_request_duration_seconds_sum", {"method": "POST /x"}) == 2.6
    assert sample("tipserve_stage_duration_seconds_sum", {"stage": "run"}) == 1.75
    name, of = "tipserve_model_requests_total", {"model": "a", "protocol": "http"}
    assert sample(name, {**of, "code": "200"}) == 2
    assert sample(name, {"model": "a", "protocol": "grpc", "code": "OK"}) == 1
    assert sample("tipserve_model_request_duration_seconds_sum", of) == 1
    assert (
        sample("tipserve_model_stage_duration_seconds_sum", {"model": "a", "stage": "run"}) == 0.75
    )
    named = [family for family in registry.collect() if "_model_" in family.name]
    assert {sample.labels["model"] for family in named for sample in family.samples} == {"a", "b"}


def test_nothing_is_lost_between_threads(registry: CollectorRegistry, calls: CallCollector) -> None:
    def count() -> None:
        for _ in range(2000):
            calls.observe("GET /x", "200", 0.01, {"run": 0.01})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    labels = {"method": "GET /x", "code": "200"}
    assert registry.get_sample_value("tipserve_requests_total", labels) == 8000
    labels = {"stage": "run"}
    assert registry.get_sample_value("tipserve_stage_duration_seconds_count", labels) == 8000
