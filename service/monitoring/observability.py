"""The metrics of one process, in a registry of their own.

A label is never an image's name, a text or an id.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

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

from service.messages import ModelInfo
from service.monitoring.call_metrics import CallCollector
from service.monitoring.device_metrics import GpuCollector
from service.monitoring.lane_metrics import LaneCollector
from service.monitoring.process_metrics import StateCollector

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
        self.rejected = self._counter("rejected", "Requests refused at the door.", "reason")
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
        self._inflight = self._gauge("inflight", "Requests inside the door.")

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
