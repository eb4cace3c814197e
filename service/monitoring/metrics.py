"""Prometheus metrics of requests, models, devices and the process, in one registry.

A label is never an image's name, a text or an id.
"""

import asyncio
import logging
import platform
import threading
import time
from collections import Counter as Count
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.call import STAGES, Stage
from service.machine import available_cpus, memory_limit
from service.messages import ModelInfo

SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.25, 0.5),
    *(1, 2.5, 5, 10, 30, 60),
)
LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
ITEMS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
PATCHES: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# As many as people compare by eye, and enough to tell packages apart.
DIGEST_CHARS: Final = 12
LAG_INTERVAL_S: Final = 0.5

# Faults that rules and alerts read, by protocol.
FAULT_CODES: Final = {
    "http": ("500", "503", "504"),
    "grpc": ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
}

logger = logging.getLogger(__name__)
# Series with creation times would double what is scraped.
disable_created_metrics()  # type: ignore[no-untyped-call]


class CallMetrics:
    """Counts and times of requests: of all by method, and of each model by protocol. Thread-safe.

    Models are not combined with methods, which would multiply the series.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Begin the times of all stages at zero."""

        def counts(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tipserve_{name}", text, labels, registry=registry)

        def times(name: str, text: str, *labels: str) -> Histogram:
            full_name = f"tipserve_{name}_seconds"
            return Histogram(full_name, text, labels, buckets=SECONDS, registry=registry)

        self._requests = counts(
            "requests",
            "Answered requests, by protocol, by route or RPC, and by status code.",
            *("protocol", "method", "code"),
        )
        self._durations = times("request_duration", "Time from a request to its answer.", "method")
        self._stages = times("stage_duration", "Time of admitted requests in a stage.", "stage")
        self._model_requests = counts(
            "model_requests",
            "Answered requests for a model, by status code.",
            *("model", "protocol", "code"),
        )
        self._model_durations = times(
            "model_request_duration",
            "Time from a request for a model to its answer.",
            *("model", "protocol"),
        )
        self._model_stages = times(
            "model_stage_duration",
            "Time of admitted requests for a model in a stage.",
            *("model", "stage"),
        )
        for stage in STAGES:
            self._stages.labels(stage)
        # The series of each method, code and model, and of each stage and model: to look one up
        # in the library takes longer than to count.
        self._requests_of: dict[tuple[str, str, str], tuple[list[Counter], list[Histogram]]] = {}
        self._stages_of: dict[tuple[Stage, str], list[Histogram]] = {}

    def declare(self, methods: Iterable[str]) -> None:
        """Begin the counts of faults of routes or RPCs at zero.

        A series that begins with the first fault has no rate until the next one, so an alert would
        miss a burst, and a query of an autoscaler would have no answer.
        """
        for method in methods:
            # A route is a verb and a path; the name of an RPC has no space.
            protocol = "http" if " " in method else "grpc"
            for code in FAULT_CODES[protocol]:
                self._requests.labels(protocol, method, code)

    def observe(
        self,
        method: str,
        code: str,
        seconds: float,
        stages: Mapping[Stage, float],
        *,
        model: str = "",
        trace_id: str = "",
    ) -> None:
        """Count one request.

        Args:
            method: One of our routes or RPCs, or `other`; never a name that a caller made up.
            code: HTTP status or gRPC code, perhaps with a suffix.
            seconds: From the request to its answer.
            stages: Seconds by stage.
            model: Name of the served model; empty if the request reached none.
            trace_id: Makes the request an exemplar of its times.
        """
        exemplar = {"trace_id": trace_id} if trace_id else None
        counters, durations = self._of_requests(method, code, model)
        for counter in counters:
            counter.inc()
        for duration in durations:
            duration.observe(seconds, exemplar)
        for stage, stage_s in stages.items():
            for duration in self._of_stage(stage, model):
                duration.observe(stage_s, exemplar)

    def _of_requests(
        self, method: str, code: str, model: str
    ) -> tuple[list[Counter], list[Histogram]]:
        found = self._requests_of.get((method, code, model))
        if found is None:
            protocol = "http" if code[0].isdigit() else "grpc"
            counters = [self._requests.labels(protocol, method, code)]
            durations = [self._durations.labels(method)]
            if model:
                counters.append(self._model_requests.labels(model, protocol, code))
                durations.append(self._model_durations.labels(model, protocol))
            found = self._requests_of[method, code, model] = counters, durations
        return found

    def _of_stage(self, stage: Stage, model: str) -> list[Histogram]:
        found = self._stages_of.get((stage, model))
        if found is None:
            found = [self._stages.labels(stage)]
            if model:
                found.append(self._model_stages.labels(model, stage))
            self._stages_of[stage, model] = found
        return found


class ModelCounter:
    """Counts for one model, and for all models in a counter with one label. Thread-safe.

    The model's own counts end with it; a series with its name would stay for ever.
    """

    def __init__(self, of_all: Counter) -> None:
        self._of_all = of_all
        self._lock = threading.Lock()
        self._own: Count[str] = Count()

    def inc(self, reason: str, count: int = 1) -> None:
        """Add to the count of a reason."""
        with self._lock:
            self._own[reason] += count
        self._of_all.labels(reason).inc(count)

    def totals(self) -> Mapping[str, int]:
        """The model's own counts by reason."""
        with self._lock:
            return dict(self._own)


# By number of items: successful batches, and their seconds in total.
BatchTotals = Mapping[int, tuple[int, float]]
# A number of a model, or its numbers by one more label.
Numbers = float | Mapping[str, float]
# What `ServedModel.measures` gives: name, help, and the label beside the model ("" for none).
MODEL_COUNTERS: Final = (
    ("model_batches", "Successful batches.", ""),
    ("model_batch_items", "Images and texts in successful batches.", ""),
    ("model_batch_seconds", "Time of successful batches, summed over all lanes.", ""),
    ("model_rejected", "Requests for the model that were refused.", "reason"),
    ("model_abandoned", "Queued items that were never computed.", "reason"),
    ("model_prompts", "Prompts looked up in the text cache.", "outcome"),
)
MODEL_GAUGES: Final = (
    ("lanes", "Lanes of a model, by state.", "state"),
    ("model_load_seconds", "Time of the model's load, with conversion and warm-up.", ""),
    ("model_queue_depth", "Items that wait for a lane.", ""),
    ("model_queue_oldest_seconds", "Age of the oldest item that waits for a lane.", ""),
    ("model_admitted_patches", "Cost of all admitted requests.", ""),
    ("model_max_admitted_patches", "Largest total cost that is admitted.", ""),
)

# Of pynvml and a GPU's handle.
ReadGpu = Callable[[Any, Any], float]
READINGS: Final[Mapping[str, tuple[str, ReadGpu]]] = {
    "tipserve_gpu_utilization_ratio": (
        "Share of the last sample period in which the GPU was busy.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    "tipserve_gpu_memory_used_bytes": (
        "Used memory of the GPU, by all processes.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    "tipserve_gpu_memory_total_bytes": (
        "Memory of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    "tipserve_gpu_power_watts": (
        "Power draw of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    "tipserve_gpu_temperature_celsius": (
        "Temperature of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
}


class GpuCollector(Collector):
    """Reads all GPUs that the process can see, by index, at every scrape.

    Raises:
        NVMLError: There is no driver, or it cannot list the GPUs.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._gpus = list(map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount())))

    def collect(self) -> Iterator[Metric]:
        """One sample for each reading and GPU; none for what NVML does not give.

        MIG slices lack permission, some GPUs lack sensors, and a GPU may fall off its bus.
        """
        for name, (text, read) in READINGS.items():
            family = GaugeMetricFamily(name, text, labels=["gpu"])
            for index, gpu in enumerate(self._gpus):
                with suppress(self._nvml.NVMLError):
                    family.add_metric([str(index)], read(self._nvml, gpu))
            yield family


def release() -> str:
    """Installed version of tipserve."""
    try:
        return version("tipserve")
    except PackageNotFoundError:
        return "unknown"


# Reasons of refusals that alerts read; their counts begin at zero, as `CallMetrics.declare` says.
CAPACITY: Final = ("queue_full", "body_memory", "work_memory", "rpcs", "unhealthy", "deadline")


class Metrics(Collector):
    """All metrics. Counters are thread-safe.

    What changes without us is read at every scrape, by functions that its owner sets.

    Attributes:
        registry: All of them.
        queue_depths: Queued items by shape.
        models: The served models.
        measures: By model, the values of `MODEL_COUNTERS` and `MODEL_GAUGES`.
        num_dropped_lines: Lines of the log that were dropped.
    """

    def __init__(self) -> None:
        """Begin all counts at zero."""
        self.registry = CollectorRegistry()
        self.calls = CallMetrics(self.registry)
        self.queue_depths: Callable[[], Mapping[str, int]] = dict
        self.models: Callable[[], Iterable[ModelInfo]] = tuple
        self.measures: Callable[[], Mapping[str, Mapping[str, Numbers]]] = dict
        self.num_dropped_lines: Callable[[], int] = int
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self.rejected = self._counter("rejected", "Refused requests.", "reason")
        for reason in CAPACITY:
            self.rejected.labels(reason)
        text = "Requests by the name of their API key or unnamed, accepted or beyond a limit of it."
        self.caller_requests = self._counter("caller_requests", text, "caller", "outcome")
        text = "Queued items that were never computed, as their caller left."
        self.abandoned = self._counter("abandoned", text, "reason")
        self.text_cache_hits = self._counter("text_cache_hits", "Prompts found in the cache.")
        self.text_cache_misses = self._counter("text_cache_misses", "Prompts that were computed.")
        text = "Prompts that another request was already computing."
        self.text_cache_coalesced = self._counter("text_cache_coalesced", text)
        self.image_cache_hits = self._counter("image_cache_hits", "Images found in the cache.")
        text = "Images looked up in the cache and not found."
        self.image_cache_misses = self._counter("image_cache_misses", text)
        self.image_cache_bytes = self._gauge("image_cache_bytes", "Bytes of the cached images.")
        self.spans = self._counter("spans", "Spans sent to the collector or lost.", "outcome")
        text = "Delay of an event loop's timers."
        self.loop_lag = self._histogram("event_loop_lag_seconds", text, LAG_SECONDS, "loop")
        # By event loop; a loop that stalls answers no request, also no health check.
        self.loops_turned_at: dict[str, float] = {}
        self._batch_images = self._histogram("batch_images", "Images of a batch.", ITEMS)
        self._batch_patches = self._histogram("batch_patches", "Patches of a batch.", PATCHES)
        self._batch_texts = self._histogram("batch_texts", "Texts of a batch.", ITEMS)
        self.inflight = self._gauge("inflight", "Admitted requests that are not answered yet.")
        self.queue_oldest = self._gauge("queue_oldest_seconds", "Age of the oldest queued item.")
        self.ready = self._gauge("ready", "1 while balancers should send requests here, else 0.")
        self.cpus = self._gauge("cpus", "CPUs for which lanes and threads are planned.")
        self.cpus.set_function(available_cpus)
        build = self._gauge("build_info", "1, labelled with versions.", "version", "python")
        build.labels(release(), platform.python_version()).set(1)

    def observe_batch(self, kind: str, num_items: int, cost: int) -> None:
        """Count one batch that a lane starts; `cost` is in patches for images."""
        if kind == "text":
            self._batch_texts.observe(num_items)
            return
        self._batch_images.observe(num_items)
        self._batch_patches.observe(cost)

    def stalled_loops(self, limit_s: float) -> list[str]:
        """Names of the event loops that have not turned for so long."""
        now = time.monotonic()
        turned = list(self.loops_turned_at.items())
        return [name for name, turned_at in turned if now - turned_at > limit_s]

    def record_first_ready(self) -> None:
        """Add the time of the first readiness; before it there is no such metric."""
        text = "Time of the first readiness, in seconds since the epoch."
        self._gauge("first_ready_timestamp_seconds", text).set_to_current_time()

    def watch_gpus(self) -> None:
        """Add the GPUs, where NVIDIA's management library and a driver are."""
        try:
            import pynvml  # noqa: PLC0415 - comes with the extra `gpu` only
        except ImportError:
            return
        try:
            self.registry.register(GpuCollector(pynvml))
        except pynvml.NVMLError as error:
            logger.info("NVML does not start (%s): there are no tipserve_gpu_*", error)

    def collect(self) -> Iterator[Metric]:
        """Families whose labels change while the server runs, and those that may have no value."""
        text = "Queued items by shape."
        depth = GaugeMetricFamily("tipserve_queue_depth", text, labels=["bucket"])
        for bucket, count in self.queue_depths().items():
            depth.add_metric([bucket], count)
        yield depth
        yield self._model_info()
        measures = self.measures()
        kinds = ((CounterMetricFamily, MODEL_COUNTERS), (GaugeMetricFamily, MODEL_GAUGES))
        for kind, name, text, label in ((kind, *row) for kind, rows in kinds for row in rows):
            labels = ["model", label] if label else ["model"]
            family = kind(f"tipserve_{name}", text, labels=labels)
            for model, values in measures.items():
                number = values[name]
                numbers = number if isinstance(number, Mapping) else {"": number}
                for reason, total in numbers.items():
                    family.add_metric([model, reason] if label else [model], total)
            yield family
        text = "Log lines that were dropped because the log's reader was too slow."
        yield CounterMetricFamily("tipserve_log_lines_dropped", text, self.num_dropped_lines())
        text = "Memory limit of the control group."
        yield GaugeMetricFamily("tipserve_memory_limit_bytes", text, memory_limit())

    def _model_info(self) -> Metric:
        labels = ["name", "variant", "runtime", "precision", "device", "package_digest"]
        family = GaugeMetricFamily("tipserve_model_info", "1 for each served model.", labels=labels)
        for info in self.models():
            package, digest = info.manifest, info.manifest.digest[:DIGEST_CHARS]
            computed = [info.runtime, info.precision, info.device]
            family.add_metric([package.name, package.variant, *computed, digest], 1)
        return family

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tipserve_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"tipserve_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tipserve_{name}", text, labels, registry=self.registry)


@asynccontextmanager
async def watching_loop_lag(
    metrics: Metrics, name: str, interval_s: float = LAG_INTERVAL_S
) -> AsyncIterator[None]:
    """Observe in every interval how late the running loop's timers are, in seconds.

    Every request on the loop waits for as long, besides its own work.
    """
    observe, turned = metrics.loop_lag.labels(name).observe, metrics.loops_turned_at

    async def watch() -> None:
        while True:
            turned[name] = time.monotonic()
            await asyncio.sleep(interval_s)
            observe(max(0.0, time.monotonic() - turned[name] - interval_s))

    task = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        turned.pop(name, None)
