"""Batches are counted by their size."""

from service.lanes.batch_queue import BatchCounts


def test_sizes_are_told_apart() -> None:
    counts = BatchCounts()
    for num_items, seconds in ((4, 0.5), (1, 0.25), (4, 1.5)):
        counts.observe(num_items, seconds)
    assert list(counts.totals().items()) == [(1, (1, 0.25)), (4, (2, 2.0))]
