"""Prometheus metrics of the process, the requests, the models and the devices."""

import logging
import platform
import threading
from bisect import bisect_left
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.call import Stage
from service.machine import CGROUP, memory_limit
from service.messages import ModelInfo

# What is told of the process: its release, whether it is ready, and what it may use.


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


# How busy the GPUs are, as NVIDIA's management library says when it is asked at a scrape.
#
# All GPUs that this process can see, by their index; in a container these are the ones it was
# given.

ReadDevice = Callable[[Any, Any], float]
READINGS: Final[tuple[tuple[str, str, ReadDevice], ...]] = (
    (
        "tipserve_gpu_utilization_ratio",
        "Share of the last moments in which the GPU computed anything.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    (
        "tipserve_gpu_memory_used_bytes",
        "Memory of the GPU that is taken, by any process.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    (
        "tipserve_gpu_memory_total_bytes",
        "Memory of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    (
        "tipserve_gpu_power_watts",
        "Power that the GPU draws.",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    (
        "tipserve_gpu_temperature_celsius",
        "Temperature of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
)
logger = logging.getLogger(__name__)


class GpuCollector(Collector):
    """Reads all GPUs when it is scraped; what a GPU does not tell has no sample."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._gpus = [
            nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())
        ]

    def collect(self) -> Iterator[Metric]:
        """One sample for each reading and GPU."""
        for name, text, read in READINGS:
            family = GaugeMetricFamily(name, text, labels=["gpu"])
            for index, gpu in enumerate(self._gpus):
                try:
                    family.add_metric([str(index)], read(self._nvml, gpu))
                except self._nvml.NVMLError:
                    # Not every GPU has every sensor, and one may fall off its bus.
                    logger.debug("GPU %d does not tell %s", index, name)
            yield family


def find_nvml() -> Any:
    """The management library where it is installed and finds a driver, else None."""
    try:
        import pynvml  # noqa: PLC0415 - comes with the extra `gpu` only
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


# What is told of each model when metrics are scraped: its lanes, its batches and what waits.

BatchTotals = Mapping[int, tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneReport:
    """One model's lanes and what is before them.

    Attributes:
        model: Its name.
        states: How many lanes are in each state.
        costs: Intercept and slope in seconds, by the label of each bucket that was measured.
        batches: By number of items, how many batches came out well, and their seconds together.
        num_waiting: Items that wait for a lane.
        oldest_s: Age of the oldest of them.
        admitted_patches: What the requests inside cost, and `max_admitted_patches` what fits.
        rejected: Requests rejected before any work, by reason.
        abandoned: Items of it that were not computed, by reason.
        prompts: Looked up in its text cache, by what came of it.
    """

    model: str
    states: Mapping[str, int]
    costs: Mapping[str, tuple[float, float]]
    batches: BatchTotals = field(default_factory=dict)
    num_waiting: int = 0
    oldest_s: float = 0.0
    admitted_patches: int = 0
    max_admitted_patches: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    abandoned: Mapping[str, int] = field(default_factory=dict)
    prompts: Mapping[str, int] = field(default_factory=dict)


def _num_batches(report: LaneReport) -> float:
    return sum(count for count, _ in report.batches.values())


def _num_items(report: LaneReport) -> float:
    return sum(size * count for size, (count, _) in report.batches.items())


def _busy_s(report: LaneReport) -> float:
    return sum(seconds for _, seconds in report.batches.values())


ReadLanes = Callable[[LaneReport], float]
COUNTERS: Final[Sequence[tuple[str, str, ReadLanes]]] = (
    ("batches", "Batches that came out well.", _num_batches),
    ("batch_items", "Images and texts in batches that came out well.", _num_items),
    ("batch_seconds", "Time that lanes computed such batches, all lanes together.", _busy_s),
)
BY_LABEL: Final[Sequence[tuple[str, str, str, Callable[[LaneReport], Mapping[str, int]]]]] = (
    ("rejected", "Requests rejected before any work.", "reason", lambda report: report.rejected),
    ("abandoned", "Queued items never computed.", "reason", lambda report: report.abandoned),
    ("prompts", "Prompts looked up in its cache.", "outcome", lambda report: report.prompts),
)
GAUGES: Final[Sequence[tuple[str, str, ReadLanes]]] = (
    ("queue_depth", "Items that wait for a lane.", lambda report: report.num_waiting),
    (
        "queue_oldest_seconds",
        "Age of the oldest item that waits for a lane.",
        lambda report: report.oldest_s,
    ),
    (
        "admitted_patches",
        "What all requests inside cost together.",
        lambda report: report.admitted_patches,
    ),
    (
        "max_admitted_patches",
        "What they may cost together before others are refused.",
        lambda report: report.max_admitted_patches,
    ),
)


class LaneCollector(Collector):
    """Reads the lanes of what is served."""

    def __init__(self) -> None:
        self.reports: Callable[[], Iterable[LaneReport]] = tuple

    def collect(self) -> Iterator[Metric]:
        """Samples for each model, its lanes' states and its measured shapes."""
        reports = list(self.reports())
        yield from _lanes_and_costs(reports)
        for name, text, read in COUNTERS:
            counter = CounterMetricFamily(f"tipserve_model_{name}", text, labels=["model"])
            for report in reports:
                counter.add_metric([report.model], read(report))
            yield counter
        for name, text, label, counts in BY_LABEL:
            counter = CounterMetricFamily(f"tipserve_model_{name}", text, labels=["model", label])
            for report in reports:
                for value, count in counts(report).items():
                    counter.add_metric([report.model, value], count)
            yield counter
        for name, text, read in GAUGES:
            gauge = GaugeMetricFamily(f"tipserve_model_{name}", text, labels=["model"])
            for report in reports:
                gauge.add_metric([report.model], read(report))
            yield gauge


def _lanes_and_costs(reports: Iterable[LaneReport]) -> Iterator[Metric]:
    lanes = GaugeMetricFamily(
        "tipserve_lanes", "Lanes of a model, by how they are.", labels=["model", "state"]
    )
    intercept = GaugeMetricFamily(
        "tipserve_batch_cost_intercept_seconds",
        "What a batch takes apart from its items, as measured.",
        labels=["model", "bucket"],
    )
    slope = GaugeMetricFamily(
        "tipserve_batch_cost_slope_seconds",
        "What each item adds to its batch, as measured.",
        labels=["model", "bucket"],
    )
    for report in reports:
        for state, count in report.states.items():
            lanes.add_metric([report.model, state], count)
        for bucket, (intercept_s, slope_s) in report.costs.items():
            intercept.add_metric([report.model, bucket], intercept_s)
            slope.add_metric([report.model, bucket], slope_s)
    yield from (lanes, intercept, slope)


# One model's share of what is counted for all of them.


class ModelCounter:
    """Counts for one model, and for all in a counter with one label. Thread-safe.

    The model's own numbers go when it goes; a series of its name would stay for ever.
    """

    def __init__(self, of_all: Counter) -> None:
        self._of_all = of_all
        self._lock = threading.Lock()
        self._own: Count[str] = Count()

    def inc(self, reason: str, count: int = 1) -> None:
        """Count so many for a reason."""
        with self._lock:
            self._own[reason] += count
        self._of_all.labels(reason).inc(count)

    def totals(self) -> Mapping[str, int]:
        """The model's own, by reason."""
        with self._lock:
            return dict(self._own)


# Counts and times every call for as little as it can cost: one lock and a few additions.
#
# The library's own counters take a lock for each number, and look up labels for each; that is four
# to nine times the time (`benchmarks/observability_cost.py`), and every request pays it.

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


# The metrics of one process, in a registry of their own.
#
# A label is never an image's name, a text or an id.

ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)
PATCHES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# As many as people compare by eye, and more than enough to tell packages apart.
DIGEST_CHARS = 12
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
Depths = Callable[[], Mapping[str, int]]
# Series of creation times would double what is scraped and nobody reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]


class QueueCollector(Collector):
    """Reads the queues when they are scraped, so that an empty bucket costs nothing."""

    def __init__(self) -> None:
        self.depths: Depths = dict
        self.oldest_s: Callable[[], float] = float

    def collect(self) -> Iterator[Metric]:
        """One sample for each bucket, and the age of the oldest item of all."""
        depth = GaugeMetricFamily(
            "tipserve_queue_depth", "Items that wait, by shape.", labels=["bucket"]
        )
        for bucket, count in self.depths().items():
            depth.add_metric([bucket], count)
        yield depth
        yield GaugeMetricFamily(
            "tipserve_queue_oldest_seconds",
            "Age of the oldest item that waits.",
            self.oldest_s(),
        )


class ModelCollector(Collector):
    """Reads what is served when it is scraped: models come and go."""

    def __init__(self) -> None:
        self.models: Callable[[], Iterable[ModelInfo]] = tuple

    def collect(self) -> Iterator[Metric]:
        """One sample for each model."""
        family = GaugeMetricFamily(
            "tipserve_model_info",
            "1 for each served model.",
            labels=["name", "variant", "runtime", "precision", "device", "package_digest"],
        )
        for info in self.models():
            manifest = info.manifest
            computed = [info.runtime, info.precision, info.device]
            digest = manifest.digest[:DIGEST_CHARS]
            family.add_metric([manifest.name, manifest.variant, *computed, digest], 1)
        yield family


class LogCollector(Collector):
    """Reads how many log lines were lost."""

    def __init__(self) -> None:
        self.num_dropped: Callable[[], int] = int

    def collect(self) -> Iterator[Metric]:
        """One sample."""
        yield CounterMetricFamily(
            "tipserve_log_lines_dropped",
            "Log lines that were not written, for the reader of the log was too slow.",
            self.num_dropped(),
        )


class Metrics:
    """All metrics. Counters are thread-safe; any part of the service may count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = CallCollector()
        self._queues = QueueCollector()
        self._models = ModelCollector()
        self.lanes = LaneCollector()
        self._log = LogCollector()
        self._state = StateCollector()
        for collector in (self.calls, self._queues, self._models, self.lanes, self._log):
            self.registry.register(collector)
        self.registry.register(self._state)
        ProcessCollector(registry=self.registry)
        self.rejected = self._counter("rejected", "Requests rejected before any work.", "reason")
        self.abandoned = self._counter(
            "abandoned", "Queued items never computed, for their caller had left.", "reason"
        )
        self.lane_rebuilds = self._counter(
            "lane_rebuilds", "Times that a lane's runtime was loaded anew, and ran again."
        )
        self.text_cache_hits = self._counter("text_cache_hits", "Prompts found in the cache.")
        self.text_cache_misses = self._counter(
            "text_cache_misses", "Prompts that had to be computed."
        )
        self.text_cache_coalesced = self._counter(
            "text_cache_coalesced", "Prompts that another request was having computed already."
        )
        self.spans = self._counter("spans", "Spans of traces, sent or lost on the way.", "outcome")
        self.loop_lag = self._histogram(
            "event_loop_lag_seconds", "How late a loop runs what is due.", LAG_SECONDS, "loop"
        )
        self._batch_images = self._histogram("batch_images", "Images of a batch.", ITEMS)
        self._batch_patches = self._histogram("batch_patches", "Patches of a batch.", PATCHES)
        self._batch_texts = self._histogram("batch_texts", "Texts of a batch.", ITEMS)
        self._inflight = self._gauge("inflight", "Requests in flight.")

    def observe_batch(self, kind: str, num_items: int, cost: int) -> None:
        """Count one batch that a lane begins; `cost` is in patches for images."""
        if kind != "text":
            self._batch_images.observe(num_items)
            self._batch_patches.observe(cost)
        else:
            self._batch_texts.observe(num_items)

    def watch_queue(self, depths: Depths, oldest_s: Callable[[], float]) -> None:
        """Read queue depths and the oldest item's age from these at every scrape."""
        self._queues.depths = depths
        self._queues.oldest_s = oldest_s

    def watch_inflight(self, count: Callable[[], int]) -> None:
        """Read the number of admitted requests from this at every scrape."""
        self._inflight.set_function(count)

    def watch_certificate(self, expires_at: Callable[[], float]) -> None:
        """Read the end of the TLS certificate from this; without TLS there is no such metric."""
        gauge = self._gauge(
            "tls_certificate_expiry_timestamp_seconds",
            "When the server's TLS certificate ends, in seconds since the epoch.",
        )
        gauge.set_function(expires_at)

    def watch_gpus(self, nvml: Any) -> None:
        """Read the GPUs by this library at every scrape; None where there are none."""
        if nvml is not None:
            self.registry.register(GpuCollector(nvml))

    def watch_log(self, num_dropped: Callable[[], int]) -> None:
        """Read the number of lost log lines from this at every scrape."""
        self._log.num_dropped = num_dropped

    def watch_state(self, is_ready: Callable[[], bool], num_cpus: Callable[[], int]) -> None:
        """Read from these at every scrape whether the server is ready, and how many CPUs it has."""
        self._state.is_ready = is_ready
        self._state.num_cpus = num_cpus

    def watch_models(self, models: Callable[[], Iterable[ModelInfo]]) -> None:
        """Read what is served from this at every scrape."""
        self._models.models = models

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tipserve_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"tipserve_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tipserve_{name}", text, labels, registry=self.registry)
