"""Shared batches equal the source's to the last bit, and are made once a stream."""

from collections.abc import Callable, Iterator

import pytest
import torch

from training.data.batch import Batch
from training.data.loader import SceneBatches
from training.reproduce.runner import BatchMemory, pack, unpack


class CountedSource:
    """Batches that note which steps were asked for."""

    def __init__(self, batches: SceneBatches) -> None:
        self._batches, self.made = batches, list[int]()

    def loader(self, first_step: int, *, num_workers: int) -> Iterator[Batch]:
        for step in range(first_step, len(self._batches)):
            self.made.append(step)
            yield self._batches[step]


@pytest.fixture
def counted(make_batches: Callable[..., SceneBatches]) -> CountedSource:
    """Six tiny batches."""
    return CountedSource(make_batches(num_steps=6))


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.pixels_B3HW, b.pixels_B3HW) and torch.equal(a.cls1_ids_T, b.cls1_ids_T)


def test_packing_loses_nothing(batch: Batch) -> None:
    again = unpack(pack(batch))
    assert again.pixels_B3HW.dtype == torch.float32
    assert torch.equal(again.pixels_B3HW, batch.pixels_B3HW)


def test_a_second_run_sees_the_same_batches_without_making_them(counted: CountedSource) -> None:
    memory = BatchMemory()
    first = list(memory.share("a", counted).loader(0, num_workers=0))
    second = list(memory.share("a", counted).loader(0, num_workers=0))
    assert counted.made == [0, 1, 2, 3, 4, 5]
    assert len(second) == 6
    assert all(same(a, b) for a, b in zip(first, second, strict=True))


def test_a_stopped_run_leaves_what_it_made(counted: CountedSource) -> None:
    memory = BatchMemory()
    take(iter(memory.share("a", counted).loader(0, num_workers=0)), 2)
    rest = list(memory.share("a", counted).loader(1, num_workers=0))
    assert counted.made == [0, 1, 2, 3, 4, 5]
    assert len(rest) == 5
    again = list(memory.share("a", counted).loader(3, num_workers=0))
    assert all(same(a, b) for a, b in zip(again, rest[2:], strict=True))


def test_another_stream_is_made_anew(counted: CountedSource) -> None:
    memory = BatchMemory()
    take(iter(memory.share("a", counted).loader(0, num_workers=0)), 1)
    take(iter(memory.share("b", counted).loader(0, num_workers=0)), 1)
    take(iter(memory.share("a", counted).loader(0, num_workers=0)), 1)
    assert counted.made == [0, 0, 0]
