"""One model at work: its lanes and its texts behind two coroutines.

Shape legend: H W pixels, D width.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future

import numpy as np
from numpy.typing import NDArray

from model.package import Manifest
from model.text import TextTokenizer
from service.call import Call
from service.lanes.batching import Batcher
from service.lanes.lane import Lane
from service.lanes.work import Bucket, Completed, Kind, WorkItem
from service.messages import ModelInfo
from service.models.admission import Admission
from service.models.statistics import ModelStatistics, RequestCounts
from service.models.text_cache import TextCache
from service.models.text_encoder import Embeddings, TextEncoder
from service.monitoring.lane_metrics import LaneReport
from service.validation import PromptGroup


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
