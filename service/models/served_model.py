"""A loaded model: its batcher, lanes, texts, admission and statistics."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.package import Manifest
from model.text import TextTokenizer
from service.call import Call, Stage
from service.lanes.batching import Batcher
from service.lanes.work import Bucket, Completed, Kind, WorkItem
from service.lanes.worker import Lane
from service.messages import ModelInfo
from service.models.admission import Admission
from service.models.texts import Embeddings, TextCache, TextEncoder
from service.monitoring.metrics import LaneReport
from service.validation import PromptGroup

# What one model has done since it was loaded: requests, their items, and where their time went.

NS_PER_S: Final = 1_000_000_000
STAGES: Final[tuple[Stage, ...]] = ("decode", "queue", "run", "post")


@dataclass(frozen=True, slots=True)
class Total:
    """How often something was done, and for how long in all."""

    count: int = 0
    ns: int = 0

    def plus(self, seconds: float) -> "Total":
        """After once more."""
        return Total(self.count + 1, self.ns + round(seconds * NS_PER_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """One model's numbers at a moment.

    Attributes:
        name: Of the model.
        last_ms: When it was last asked, in milliseconds since the epoch; 0 where it never was.
        num_items: Images and texts of requests that were answered.
        success: Requests that were answered.
        fail: Requests that were let in and not answered.
        stages: Of requests that were answered, by stage.
        batches: By number of items.
    """

    name: str
    last_ms: int
    num_items: int
    success: Total
    fail: Total
    stages: Mapping[Stage, Total]
    batches: Mapping[int, Total]

    @property
    def num_batches(self) -> int:
        """Of all sizes."""
        return sum(total.count for total in self.batches.values())


class RequestCounts:
    """Counts one model's requests. Thread-safe: both transports' loops come here."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._last_ms = 0
        self._num_items = 0
        self._success = self._fail = Total()
        self._stages: dict[Stage, Total] = dict.fromkeys(STAGES, Total())

    def watching(self, call: Call, num_items: int) -> "Watch":
        """Count what happens in the block as one request of so many items."""
        return Watch(self, call, num_items)

    def view(self, name: str, batches: Mapping[int, tuple[int, float]]) -> ModelStatistics:
        """The numbers as they are now.

        Args:
            name: Of the model.
            batches: By number of items, how many there were and their seconds together.
        """
        with self._lock:
            return ModelStatistics(
                name=name,
                last_ms=self._last_ms,
                num_items=self._num_items,
                success=self._success,
                fail=self._fail,
                stages=dict(self._stages),
                batches={
                    size: Total(count, round(seconds * NS_PER_S))
                    for size, (count, seconds) in batches.items()
                },
            )

    def _count(self, seconds: float, num_items: int, stages: Mapping[Stage, float] | None) -> None:
        """Without stages the request was not answered."""
        with self._lock:
            self._last_ms = int(self._now() * 1000)
            if stages is None:
                self._fail = self._fail.plus(seconds)
                return
            self._success = self._success.plus(seconds)
            self._num_items += num_items
            for stage in STAGES:
                if stage in stages:
                    self._stages[stage] = self._stages[stage].plus(stages[stage])


class Watch:
    """One request; written out, for every request passes through it."""

    __slots__ = ("_before", "_began", "_call", "_counts", "_num_items")

    def __init__(self, counts: RequestCounts, call: Call, num_items: int) -> None:
        self._counts, self._call, self._num_items = counts, call, num_items
        self._began = call.clock()
        self._before = dict(call.stages)

    def __enter__(self) -> None:
        """Nothing is to be done: it began when it was made."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        seconds = self._call.clock() - self._began
        stages = None
        if kind is None:
            # A call may hold two requests, images and texts; each counts what it added.
            stages = {
                stage: max(0.0, total_s - self._before.get(stage, 0.0))
                for stage, total_s in self._call.stages.items()
            }
        self._counts._count(seconds, self._num_items, stages)


# One model at work: its lanes and its texts behind two coroutines.
#
# Shape legend: H W pixels, D width.


class ServedModel:
    """A model that answers. Its coroutines may run on any event loop."""

    def __init__(
        self,
        info: ModelInfo,
        *,
        tokenizer: TextTokenizer,
        batcher: Batcher,
        lanes: Sequence[Lane],
        cache: TextCache,
        admission: Admission,
    ) -> None:
        self.info = info
        self.admission = admission
        self._batcher = batcher
        self._lanes = lanes
        self.requests = RequestCounts()
        self._cache = cache
        self._texts = TextEncoder(tokenizer, batcher, cache)

    def close(self, timeout_s: float) -> None:
        """Answer what still waits, let running batches end, and free the runtimes."""
        if self._batcher.stop(timeout_s):
            for lane in self._lanes:
                lane.runtime.close()

    @property
    def manifest(self) -> Manifest:
        """What the package says about the model."""
        return self.info.manifest

    @property
    def is_ready(self) -> bool:
        """Whether any lane takes work."""
        return self._batcher.is_ready

    @property
    def is_live(self) -> bool:
        """False once no lane has been well for so long that only a new process can help."""
        return self._batcher.is_live

    def queue_depths(self) -> dict[str, int]:
        """What waits, by shape; shapes that are not in the manifest are many, and share a label."""
        kinds: tuple[Kind, ...] = ("image", *self.info.tasks)
        named = {Bucket(k, shape) for k in kinds for shape in self.manifest.shape_buckets}
        totals = {bucket.label: 0 for bucket in named}
        for bucket, depth in self._batcher.queue.depths().items():
            is_named = not bucket.is_image or bucket in named
            label = bucket.label if is_named else f"{bucket.kind} other"
            totals[label] = totals.get(label, 0) + depth
        return totals

    def oldest_s(self) -> float:
        """Seconds that the oldest item has waited; 0 where none waits."""
        return self._batcher.queue.oldest_s()

    def lane_report(self) -> LaneReport:
        """How the lanes are, what batches cost them and what waits for them, for the metrics."""
        curves = self._batcher.costs.curves().items()
        depths = self._batcher.queue.depths().values()
        return LaneReport(
            model=self.manifest.name,
            states=self._batcher.lane_states(),
            costs={bucket.label: (c.intercept_s, c.slope_s) for bucket, c in curves},
            batches=self._batcher.counts.totals(),
            num_waiting=sum(depths),
            oldest_s=self.oldest_s(),
            admitted_patches=self.admission.cost,
            max_admitted_patches=self.admission.max_cost,
            rejected=self.admission.rejected.totals(),
            abandoned=self._batcher.queue.abandoned.totals(),
            prompts=self._cache.lookups(),
        )

    def statistics(self) -> ModelStatistics:
        """What it has done since it was loaded."""
        return self.requests.view(self.manifest.name, self._batcher.counts.totals())

    def num_patches(self, size_hw: tuple[int, int]) -> int:
        """Patches of an image of this size, which is its cost."""
        return size_hw[0] * size_hw[1] // self.manifest.patch_size**2

    def find_cached(self, groups: Sequence[PromptGroup]) -> dict[str, NDArray[np.float32]]:
        """Raw embeddings [D] of those prompts that are in the cache."""
        return self._texts.find(prompt for group in groups for prompt in group.prompts)

    def count_tokens(self, prompts: Iterable[str]) -> int:
        """As `TextEncoder.count_tokens`."""
        return self._texts.count_tokens(prompts)

    def blank_prompts(self, prompts: Sequence[str]) -> set[str]:
        """Those prompts that have no token. CPU work."""
        return self._texts.blank(prompts)

    def submit_images(
        self, pixels: Sequence[NDArray[np.float32]], call: Call, kind: Kind = "image"
    ) -> list["Future[Completed]"]:
        """Queue prepared images; the i-th future has the i-th's raw outputs. From any thread.

        Args:
            pixels: float32 [3, H, W] each.
            call: Whose deadline bounds the wait.
            kind: What is to be computed of them.

        Raises:
            Unavailable: The server stops.
        """
        items = [
            WorkItem(
                bucket=Bucket(kind, (p.shape[1], p.shape[2])),
                cost=self.num_patches((p.shape[1], p.shape[2])),
                payload=p,
                deadline=call.deadline,
                trace=call.trace,
                priority=call.priority,
                flow=call.flow,
            )
            for p in pixels
        ]
        call.trace.enter_queue(call.clock())
        return self._batcher.submit(items)

    def count_abandoned(self, num_images: int, call: Call) -> None:
        """Count images whose caller left before they were queued."""
        self._batcher.queue.count_abandoned(num_images, call.deadline)

    async def encode_prompts(
        self, missing: Mapping[str, str], call: Call, pool: Executor
    ) -> tuple[Embeddings, list[Completed]]:
        """As `TextEncoder.encode`."""
        return await self._texts.encode(missing, call, pool)
