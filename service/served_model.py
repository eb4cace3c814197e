"""One model at work: its lanes and its texts behind two coroutines.

Shape legend: H W pixels, D width.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from model.package import Manifest
from model.text import TextTokenizer
from service.admission import Admission
from service.batch_queue import Bucket, Completed, WorkItem
from service.batching import Batcher
from service.call import Call
from service.lane import Lane
from service.messages import ModelInfo
from service.text_cache import TextCache
from service.text_encoder import Embeddings, TextEncoder
from service.validation import PromptGroup
from service.waiting import wait_all


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

    def num_patches(self, size_hw: tuple[int, int]) -> int:
        """Patches of a picture of this size, which is its cost."""
        return size_hw[0] * size_hw[1] // self.manifest.patch_size**2

    def find_cached(self, groups: Sequence[PromptGroup]) -> dict[str, NDArray[np.float32]]:
        """Raw embeddings [D] of those prompts that are in the cache."""
        return self._texts.find(prompt for group in groups for prompt in group.prompts)

    async def encode_images(
        self, pixels: Sequence[NDArray[np.float32]], call: Call
    ) -> list[Completed]:
        """Raw embeddings of prepared pictures.

        Args:
            pixels: float32 [3, H, W] each.
            call: Whose deadline bounds the wait.

        Raises:
            ServiceError: The deadline passed, the server stops, or a batch failed.
        """
        items = [
            WorkItem(
                bucket=Bucket("image", (p.shape[1], p.shape[2])),
                cost=self.num_patches((p.shape[1], p.shape[2])),
                payload=p,
                deadline=call.deadline,
                trace=call.trace,
            )
            for p in pixels
        ]
        call.trace.enter_queue(call.clock())
        return await wait_all(map(asyncio.wrap_future, self._batcher.submit(items)))

    async def encode_prompts(
        self, missing: Mapping[str, str], call: Call, pool: Executor
    ) -> tuple[Embeddings, list[Completed]]:
        """As `TextEncoder.encode`."""
        return await self._texts.encode(missing, call, pool)
