"""What is told of the process: its release, whether it is ready, and what it may use."""

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CGROUP: Final = Path("/sys/fs/cgroup")
# Without a limit the first version of control groups says a number near 2 ** 63.
NO_LIMIT_BYTES: Final = 2**60


class StateCollector(Collector):
    """Reads how the process is when it is scraped."""

    def __init__(self, cgroup: Path = CGROUP) -> None:
        self.is_ready: Callable[[], bool] = bool
        self.num_cpus: Callable[[], int] | None = None
        self._cgroup = cgroup
        self._labels = [release(), platform.python_version()]

    def collect(self) -> Iterator[Metric]:
        """One sample each; none of a limit that is not set or not known."""
        build = GaugeMetricFamily(
            "tipserve_build_info", "1, for what runs here.", labels=["version", "python"]
        )
        build.add_metric(self._labels, 1)
        yield build
        text = "1 while balancers should send requests here, else 0."
        yield GaugeMetricFamily("tipserve_ready", text, float(self.is_ready()))
        text = "CPUs that this process may use, by affinity and control group."
        yield GaugeMetricFamily("tipserve_cpus", text, self.num_cpus and self.num_cpus())
        text = "Memory that the control group may take before its processes are killed."
        yield GaugeMetricFamily("tipserve_memory_limit_bytes", text, memory_limit(self._cgroup))


def release() -> str:
    """Our version, as it is installed."""
    try:
        return version("tipserve")
    except PackageNotFoundError:
        return "unknown"


def memory_limit(cgroup: Path = CGROUP) -> int | None:
    """Bytes, in either version of control groups; None where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (cgroup / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < NO_LIMIT_BYTES else None
    return None
