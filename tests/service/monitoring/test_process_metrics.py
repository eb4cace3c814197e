"""What is told of the process: limits of either version of control groups, and readiness."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.monitoring.metrics import (
    NO_LIMIT_BYTES,
    Metrics,
    StateCollector,
    memory_limit,
    release,
)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1048576\n"}, 1048576),
        ({"memory/memory.limit_in_bytes": "2048\n"}, 2048),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"memory.max": str(NO_LIMIT_BYTES - 1)}, NO_LIMIT_BYTES - 1),
    ],
)
def test_the_memory_limit_is_read_in_either_version(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == expected
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
