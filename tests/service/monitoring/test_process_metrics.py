"""What is told of the process: limits of either version of control groups, and readiness."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.monitoring.metrics import Metrics, StateCollector, release


@pytest.mark.parametrize(("text", "expected"), [("max\n", None), ("1048576\n", 1048576)])
def test_the_memory_limit_is_exported_if_set(
    tmp_path: Path, text: str, expected: int | None
) -> None:
    (tmp_path / "memory.max").write_text(text)
    registry = CollectorRegistry()
    registry.register(StateCollector(tmp_path))
    assert registry.get_sample_value("tipserve_memory_limit_bytes") == expected


def test_readiness_and_cpus_are_read_when_scraped(metrics: Metrics) -> None:
    sample = metrics.registry.get_sample_value
    assert sample("tipserve_ready") == 0
    assert sample("tipserve_cpus") is None
    is_ready = [True]
    metrics.watch_state(lambda: is_ready[0], lambda: 3)
    assert (sample("tipserve_ready"), sample("tipserve_cpus")) == (1, 3)
    is_ready[0] = False
    assert sample("tipserve_ready") == 0


def test_the_release_is_told(metrics: Metrics) -> None:
    builds = [f for f in metrics.registry.collect() if f.name == "tipserve_build_info"]
    assert [sample.labels["version"] for sample in builds[0].samples] == [release()]
