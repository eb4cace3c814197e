"""Counts and times every call for as little as it can cost: one lock and a few additions.

The library's own counters take a lock for each number, and look up labels for each; that is four
to nine times the time (`benchmarks/observability_cost.py`), and every request pays it.
"""

import threading
from bisect import bisect_left
from collections import Counter as Count
from collections.abc import Iterator, Mapping, Sequence
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


Rows = dict[tuple[str, ...], Times]


class ModelCalls:
    """The calls of one model, or of none. Not thread-safe."""

    __slots__ = ("durations", "requests", "stages")

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], int] = {}
        self.durations: dict[str, Times] = {}
        self.stages: dict[str, Times] = {}


class CallCollector(Collector):
    """Calls by method and code, their durations by method, their stages by name. Thread-safe.

    All of it again for each model, with the protocol in the place of the method, so that many
    models and methods do not multiply.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_model: dict[str, ModelCalls] = {}

    def observe(
        self,
        method: str,
        code: str,
        seconds: float | None,
        stages: Mapping[Stage, float],
        *,
        model: str = "",
    ) -> None:
        """Count one call.

        Args:
            method: A route or an RPC of ours, or `other`; never what a caller made up.
            code: HTTP status or gRPC code.
            seconds: From the request to its answer; None where nothing of ours ran.
            stages: Seconds by stage.
            model: Name of the served model that it came to; empty where it came to none.
        """
        key = (method, code)
        with self._lock:
            calls = self._by_model.get(model)
            if calls is None:
                calls = self._by_model[model] = ModelCalls()
            calls.requests[key] = calls.requests.get(key, 0) + 1
            if seconds is not None:
                _times(calls.durations, method).add(seconds)
            for name, stage_s in stages.items():
                _times(calls.stages, name).add(stage_s)

    def collect(self) -> Iterator[Metric]:
        """The families as they are now: of all calls, then of each model."""
        with self._lock:
            found = {model: _snapshot(calls) for model, calls in self._by_model.items()}
        requests: Count[tuple[str, ...]] = Count()
        durations: Rows = {}
        stages: Rows = {}
        for calls in found.values():
            requests.update(calls.requests)
            _merge(durations, {(method,): times for method, times in calls.durations.items()})
            _merge(stages, {(stage,): times for stage, times in calls.stages.items()})
        text = "Answered requests, by route or RPC and by status code."
        yield _counter("tipserve_requests", text, ["method", "code"], requests)
        text = "From the request to its answer."
        yield _histogram("tipserve_request_duration_seconds", text, ["method"], durations)
        text = "Time of an admitted request by stage."
        yield _histogram("tipserve_stage_duration_seconds", text, ["stage"], stages)
        found.pop("", None)
        yield from _of_models(found)


def _of_models(found: Mapping[str, ModelCalls]) -> Iterator[Metric]:
    requests: Count[tuple[str, ...]] = Count()
    durations: Rows = {}
    stages: Rows = {}
    for model, calls in found.items():
        for (method, code), count in calls.requests.items():
            requests[model, _protocol(method), code] += count
        for method, times in calls.durations.items():
            _merge(durations, {(model, _protocol(method)): times})
        _merge(stages, {(model, stage): times for stage, times in calls.stages.items()})
    text = "Answered requests that came to a model, by status code."
    yield _counter("tipserve_model_requests", text, ["model", "protocol", "code"], requests)
    name, text = "tipserve_model_request_duration_seconds", "As for all, of one model."
    yield _histogram(name, text, ["model", "protocol"], durations)
    name = "tipserve_model_stage_duration_seconds"
    yield _histogram(name, text, ["model", "stage"], stages)


def _protocol(method: str) -> str:
    """Of what came to a model: a route has a verb before it, an RPC has not."""
    return "http" if " " in method else "grpc"


def _times(by_label: dict[str, Times], label: str) -> Times:
    times = by_label.get(label)
    if times is None:
        times = by_label[label] = Times()
    return times


def _snapshot(calls: ModelCalls) -> ModelCalls:
    copy = ModelCalls()
    copy.requests.update(calls.requests)
    copy.durations.update({label: _copy(times) for label, times in calls.durations.items()})
    copy.stages.update({label: _copy(times) for label, times in calls.stages.items()})
    return copy


def _copy(times: Times) -> Times:
    copy = Times()
    copy.counts, copy.total_s = list(times.counts), times.total_s
    return copy


def _merge(rows: Rows, more: Mapping[tuple[str, ...], Times]) -> None:
    for labels, times in more.items():
        sums = rows.setdefault(labels, Times())
        sums.counts = [a + b for a, b in zip(sums.counts, times.counts, strict=True)]
        sums.total_s += times.total_s


def _counter(
    name: str, text: str, labels: Sequence[str], rows: Mapping[tuple[str, ...], int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in rows.items():
        family.add_metric(values, count)
    return family


def _histogram(name: str, text: str, labels: Sequence[str], rows: Rows) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, times in rows.items():
        buckets = list(zip(BOUNDS, map(float, accumulate(times.counts)), strict=True))
        family.add_metric(values, buckets, times.total_s)
    return family
