"""The metrics of one process, in a registry of their own.

A label is never a picture's name, a text or an id.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.call import Stage

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)
PATCHES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


# Series of creation times would double what is scraped and nobody reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]


class QueueCollector(Collector):
    """Reads the queues when they are scraped, so that an empty bucket costs nothing."""

    def __init__(self) -> None:
        self.depths: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample for each bucket that holds something."""
        family = GaugeMetricFamily(
            "tipserve_queue_depth", "Items that wait, by shape.", labels=["bucket"]
        )
        for bucket, depth in self.depths().items():
            family.add_metric([bucket], depth)
        yield family


class Metrics:
    """All metrics. Counters are thread-safe; any part of the service may count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._queues = QueueCollector()
        self.registry.register(self._queues)
        ProcessCollector(registry=self.registry)
        self.requests = self._counter(
            "requests", "Answered requests, by route or RPC and by status code.", "method", "code"
        )
        self.rejected = self._counter("rejected", "Requests refused at the door.", "reason")
        self.abandoned = self._counter(
            "abandoned", "Queued items never computed, for their caller had left.", "reason"
        )
        self.text_cache_hits = self._counter("text_cache_hits", "Prompts found in the cache.")
        self.text_cache_misses = self._counter(
            "text_cache_misses", "Prompts that had to be computed."
        )
        self.text_cache_coalesced = self._counter(
            "text_cache_coalesced", "Prompts that another request was having computed already."
        )
        self.duration = self._histogram(
            "request_duration_seconds", "From the request to its answer.", SECONDS, "method"
        )
        self.stage = self._histogram(
            "stage_duration_seconds", "Time of an admitted request by stage.", SECONDS, "stage"
        )
        self._batch_images = self._histogram("batch_images", "Pictures of a batch.", ITEMS)
        self._batch_patches = self._histogram("batch_patches", "Patches of a batch.", PATCHES)
        self._batch_texts = self._histogram("batch_texts", "Texts of a batch.", ITEMS)
        self._oldest = self._gauge("queue_oldest_seconds", "Age of the oldest item that waits.")
        self._inflight = self._gauge("inflight", "Requests inside the door.")
        self._model_info = self._gauge(
            "model_info", "1 for each served model.", "name", "variant", "runtime", "precision"
        )

    def observe_batch(self, kind: str, num_items: int, cost: int) -> None:
        """Count one batch that a lane begins; `cost` is in patches for pictures."""
        if kind == "image":
            self._batch_images.observe(num_items)
            self._batch_patches.observe(cost)
        else:
            self._batch_texts.observe(num_items)

    def observe_stages(self, stages: Mapping[Stage, float]) -> None:
        """Record the seconds of each stage of one call."""
        for stage, seconds in stages.items():
            self.stage.labels(stage).observe(seconds)

    def watch_queue(
        self, depths: Callable[[], Mapping[str, int]], oldest_s: Callable[[], float]
    ) -> None:
        """Read queue depths and the oldest item's age from these at every scrape."""
        self._queues.depths = depths
        self._oldest.set_function(oldest_s)

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

    def add_model(self, *, name: str, variant: str, runtime: str, precision: str) -> None:
        """Tell that a model is served."""
        self._model_info.labels(name, variant, runtime, precision).set(1)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tipserve_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"tipserve_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tipserve_{name}", text, labels, registry=self.registry)
