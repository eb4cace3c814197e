"""Keeps the batches of one stream, since all variants of a seed see the very same ones.

Making a scene costs a CPU about a quarter of a small model's step.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from training.data.batch import Batch
from training.trainer import BatchSource


class BatchMemory:
    """Batches by step of the last stream that was asked for; pixels are kept as 8-bit."""

    def __init__(self) -> None:
        self._stream = ""
        self._batches: dict[int, Batch] = {}

    def share(self, stream: str, batches: BatchSource) -> "SharedBatches":
        """Wrap a source; batches of an equal `stream` made before are not made again.

        Args:
            stream: Says everything that a batch depends on, beside its step.
            batches: The source.
        """
        if stream != self._stream:
            self._stream, self._batches = stream, {}
        return SharedBatches(batches, self._batches)


class SharedBatches:
    """A batch source that remembers."""

    def __init__(self, batches: BatchSource, memory: dict[int, Batch]) -> None:
        self._batches, self._memory = batches, memory

    def loader(self, first_step: int, *, num_workers: int) -> Iterator[Batch]:
        """Go on from a step; what is not remembered is made by the source."""
        step = first_step
        while step in self._memory:
            yield unpack(self._memory[step])
            step += 1
        for number, batch in enumerate(self._batches.loader(step, num_workers=num_workers), step):
            self._memory[number] = pack(batch)
            yield batch


def pack(batch: Batch) -> Batch:
    """Turn [0, 1] pixels that came from 8 bits into them again; nothing is lost."""
    return replace(batch, pixels_B3HW=(batch.pixels_B3HW * 255).round().to(torch.uint8))


def unpack(batch: Batch) -> Batch:
    """Undo `pack`, to the last bit."""
    return replace(batch, pixels_B3HW=batch.pixels_B3HW.float() / 255.0)
