"""A loaded model: its batcher, lanes, texts, queue budget and statistics."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from model.text import TextTokenizer
from service.call import Call, Stage
from service.lanes.batching import Batcher
from service.lanes.lane import Lane
from service.lanes.work import Bucket, Kind
from service.messages import ModelInfo
from service.models.texts import TextCache, TextEncoder
from service.monitoring.metrics import Numbers
from service.patch_budget import PatchBudget

NS_PER_S: Final = 1_000_000_000
STAGES: Final[tuple[Stage, ...]] = ("decode", "queue", "run", "post")


@dataclass(frozen=True, slots=True)
class Total:
    """A number of events and their total duration."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """Counts of one model since it was loaded.

    Attributes:
        name: Of the model.
        last_ms: Time of the last request, in milliseconds since the epoch; 0 before the first.
        num_items: Images and texts of successful requests.
        totals: Requests by outcome, rejected ones among those that `fail`, and `cache_hit` those
            that the cache of texts answered; and times of successful ones by stage.
        batches: Batches by their number of items.
    """

    name: str
    last_ms: int
    num_items: int
    totals: Mapping[str, Total]
    batches: Mapping[int, Total]


class RequestCounts:
    """Counts the requests of one model. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_ms = self._num_items = 0
        # By outcome or stage.
        self._counts: Counter[str] = Counter()
        self._seconds: dict[str, float] = defaultdict(float)

    def snapshot(self, name: str, batches: Mapping[int, tuple[int, float]]) -> ModelStatistics:
        """The counts now, with the number and total seconds of batches by their size."""
        with self._lock:
            keys = ("success", "fail", "cache_hit", *STAGES)
            return ModelStatistics(
                name=name,
                last_ms=self._last_ms,
                num_items=self._num_items,
                totals={key: _total(self._counts[key], self._seconds[key]) for key in keys},
                batches={size: _total(*counted) for size, counted in batches.items()},
            )

    @contextmanager
    def count(self, call: Call, num_items: int) -> Iterator[None]:
        """Count one request of so many items, which the block answers."""
        began = call.clock()
        # One call may make two requests, for images and texts; each counts its own stages.
        before = dict(call.stages)
        try:
            yield
        except BaseException:
            self._add({"fail": call.clock() - began}, 0)
            raise
        stages = {s: max(0.0, total - before.get(s, 0.0)) for s, total in call.stages.items()}
        added = {"success": call.clock() - began}
        # As in Triton, and as `perf_analyzer` checks: every request counts for the queue, and for
        # all stages of computing, or for none of them if the cache answers it.
        if "run" in stages:
            added |= {stage: stages.get(stage, 0.0) for stage in STAGES}
        else:
            added |= {"cache_hit": added["success"], "queue": stages.get("queue", 0.0)}
        self._add(added, num_items)

    def _add(self, seconds: Mapping[str, float], num_items: int) -> None:
        with self._lock:
            self._last_ms = int(time.time() * 1000)
            self._num_items += num_items
            for key, added in seconds.items():
                self._counts[key] += 1
                self._seconds[key] += added


def _total(count: int, seconds: float) -> Total:
    return Total(count, round(seconds * NS_PER_S))


class ServedModel:
    """A loaded model. Its coroutines may run on any event loop. Shape legend: H W pixels.

    Attributes:
        info: Description for callers.
        manifest: Of the model package.
        budget: Patches of its queue, which admitted requests hold.
        queue: Takes images and texts.
        requests: Counts them.
        texts: The text side.
        batcher: Computes them; knows the health of its lanes.
        load_s: Time of its load, which the repository measures.
        patch_s: Seconds of one lane for a patch of a single image, measured at its load before any
            request; 0 if unknown.
    """

    def __init__(
        self,
        info: ModelInfo,
        *,
        tokenizer: TextTokenizer,
        batcher: Batcher,
        lanes: Sequence[Lane],
        cache: TextCache,
        budget: PatchBudget,
    ) -> None:
        self.info = info
        self.manifest = info.manifest
        self.budget = budget
        self.queue = batcher.queue
        self.requests = RequestCounts()
        self.load_s = 0.0
        self.patch_s = 0.0
        self.texts = TextEncoder(tokenizer, batcher, cache)
        self.batcher = batcher
        self.lanes = lanes
        self._cache = cache

    def unloaded_s(self, num_patches: int, num_parts: int) -> float:
        """Seconds that idle lanes take for so many patches of equal parts."""
        return self.patch_s * num_patches / max(1, min(num_parts, len(self.lanes)))

    def release_idle_memory(self) -> None:
        """Free what the runtimes keep for later batches; from any thread."""
        for lane in self.lanes:
            lane.runtime.release_idle_memory()

    def close(self, timeout_s: float) -> None:
        """Reject waiting work, let running batches end, and free the runtimes."""
        if self.batcher.stop(timeout_s):
            for lane in self.lanes:
                lane.runtime.close()

    def queue_depths(self) -> dict[str, int]:
        """Waiting items by bucket label.

        Shapes outside the manifest share one label, because callers choose them: a label for each
        would let them create metric series without bound.
        """
        kinds: tuple[Kind, ...] = ("image", *self.info.tasks)
        named = {Bucket(k, shape) for k in kinds for shape in self.manifest.shape_buckets}
        totals = {bucket.label: 0 for bucket in named}
        for bucket, depth in self.queue.depths().items():
            is_named = not bucket.is_image or bucket in named
            label = bucket.label if is_named else f"{bucket.kind} other"
            totals[label] = totals.get(label, 0) + depth
        return totals

    def measures(self) -> dict[str, Numbers]:
        """Its metrics that a scrape reads: `MODEL_COUNTERS` and `MODEL_GAUGES`."""
        batches = self.batcher.totals()
        return {
            "model_batches": sum(count for count, _ in batches.values()),
            "model_batch_items": sum(size * count for size, (count, _) in batches.items()),
            "model_batch_seconds": sum(seconds for _, seconds in batches.values()),
            "model_rejected": self.budget.rejected.totals(),
            "model_abandoned": self.queue.abandoned.totals(),
            "model_prompts": self._cache.lookups(),
            "lanes": self.batcher.lane_states(),
            "model_load_seconds": self.load_s,
            "model_queue_depth": sum(self.queue.depths().values()),
            "model_queue_oldest_seconds": self.queue.oldest_s(),
            "model_admitted_patches": self.budget.num_patches,
            "model_max_admitted_patches": self.budget.max_patches,
        }

    def statistics(self) -> ModelStatistics:
        """Counts since the model was loaded."""
        return self.requests.snapshot(self.manifest.name, self.batcher.totals())
