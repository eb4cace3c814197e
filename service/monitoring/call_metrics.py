"""Counts and times every call for as little as it can cost: one lock and a few additions.

The library's own counters take a lock for each number, and look up labels for each; that is four
to nine times the time (`benchmarks/observability_cost.py`), and every request pays it.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.call import Stage

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BOUNDS: Final = (*map(floatToGoString, SECONDS), "+Inf")


class Times:
    """One histogram of seconds. Not thread-safe."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * len(BOUNDS)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total_s += seconds


class CallCollector(Collector):
    """Calls by method and code, their durations by method, their stages by name. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str], int] = {}
        self._durations: dict[str, Times] = {}
        self._stages: dict[str, Times] = {}

    def observe(
        self, method: str, code: str, seconds: float | None, stages: Mapping[Stage, float]
    ) -> None:
        """Count one call.

        Args:
            method: A route or an RPC of ours, or `other`; never what a caller made up.
            code: HTTP status or gRPC code.
            seconds: From the request to its answer; None where nothing of ours ran.
            stages: Seconds by stage.
        """
        key = (method, code)
        with self._lock:
            self._requests[key] = self._requests.get(key, 0) + 1
            if seconds is not None:
                _times(self._durations, method).add(seconds)
            for name, stage_s in stages.items():
                _times(self._stages, name).add(stage_s)

    def collect(self) -> Iterator[Metric]:
        """The three families as they are now."""
        with self._lock:
            requests = list(self._requests.items())
            durations = _copy(self._durations)
            stages = _copy(self._stages)
        family = CounterMetricFamily(
            "tipserve_requests",
            "Answered requests, by route or RPC and by status code.",
            labels=["method", "code"],
        )
        for labels, count in requests:
            family.add_metric(labels, count)
        yield family
        text = "From the request to its answer."
        yield _histogram("tipserve_request_duration_seconds", text, "method", durations)
        text = "Time of an admitted request by stage."
        yield _histogram("tipserve_stage_duration_seconds", text, "stage", stages)


def _times(by_label: dict[str, Times], label: str) -> Times:
    times = by_label.get(label)
    if times is None:
        times = by_label[label] = Times()
    return times


def _copy(by_label: Mapping[str, Times]) -> list[tuple[str, list[int], float]]:
    return [(label, list(times.counts), times.total_s) for label, times in by_label.items()]


def _histogram(
    name: str, text: str, label: str, rows: Iterable[tuple[str, list[int], float]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=[label])
    for value, counts, total_s in rows:
        buckets = list(zip(BOUNDS, map(float, accumulate(counts)), strict=True))
        family.add_metric([value], buckets, total_s)
    return family
