"""The stream's order: every sample once an epoch, shuffled, known at any place."""

import pickle

import numpy as np
import pytest

from training.data.shards.batches import StreamOrder

SIZES = np.array([4, 0, 7, 3, 5, 6])
TOTAL = 25


def order(**changes: int) -> StreamOrder:
    """Six shards, one of them empty, two in a window."""
    return StreamOrder(SIZES, **{"seed": 0, "window_shards": 2, **changes})


def test_every_epoch_holds_every_sample_once() -> None:
    stream = order()
    expected = {(shard, row) for shard, size in enumerate(SIZES) for row in range(size)}
    epochs = [[stream.at(epoch * TOTAL + i) for i in range(TOTAL)] for epoch in range(3)]
    for places in epochs:
        assert len(places) == len(set(places)) == TOTAL
        assert set(places) == expected
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_samples_of_one_window_come_in_another_order_in_every_epoch() -> None:
    stream = StreamOrder(np.array([12]), seed=0, window_shards=1)
    epochs = [tuple(stream.at(epoch * 12 + i) for i in range(12)) for epoch in range(4)]
    assert len(set(epochs)) == 4


def test_a_place_is_known_without_those_before_it() -> None:
    stream = order()
    forwards = [stream.at(place) for place in range(60)]
    assert [order().at(place) for place in (59, 3, 31, 30)] == [
        forwards[i] for i in (59, 3, 31, 30)
    ]
    assert [stream.at(place) for place in reversed(range(60))] == forwards[::-1]


def test_shards_and_the_samples_within_a_window_are_shuffled() -> None:
    places = [order().at(place) for place in range(TOTAL)]
    assert places != sorted(places)
    shards = list(dict.fromkeys(shard for shard, _ in places))
    assert shards != sorted(shards)
    assert [row for shard, row in places if shard == 2] != list(range(7))


def test_only_a_window_s_shards_are_open_at_a_time() -> None:
    stream = StreamOrder(np.full(8, 10), seed=3, window_shards=2)
    for window in range(4):
        assert len({stream.at(window * 20 + i)[0] for i in range(20)}) == 2
    mixed = [stream.at(i)[0] for i in range(20)]
    assert mixed != sorted(mixed, key=mixed.index)


def test_the_seed_decides() -> None:
    first = [order().at(place) for place in range(TOTAL)]
    assert [order().at(place) for place in range(TOTAL)] == first
    assert [order(seed=1).at(place) for place in range(TOTAL)] != first


def test_a_substitute_is_one_of_the_window_and_always_the_same() -> None:
    stream = order()
    shards = {stream.at(place)[0] for place in range(TOTAL)}
    chosen = [stream.substitute(2, attempt) for attempt in range(30)]
    assert [order().substitute(2, attempt) for attempt in range(30)] == chosen
    assert len(set(chosen)) > 3
    assert {shard for shard, _ in chosen} < shards


def test_an_order_travels_to_worker_processes() -> None:
    stream = order()
    stream.at(7)
    copied = pickle.loads(pickle.dumps(stream))
    assert [copied.at(place) for place in range(40)] == [order().at(place) for place in range(40)]


def test_a_window_may_be_larger_than_the_data_set() -> None:
    stream = order(window_shards=100)
    assert len({stream.at(place) for place in range(TOTAL)}) == TOTAL


def test_nothing_to_read_and_no_window_are_refused() -> None:
    with pytest.raises(ValueError, match="no image"):
        StreamOrder(np.zeros(3, np.int64), seed=0, window_shards=2)
    with pytest.raises(ValueError, match="window_shards"):
        order(window_shards=0)
