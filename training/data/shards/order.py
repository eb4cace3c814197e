"""The order in which samples are seen: shuffled, and known at any place without a read.

Every epoch the shards are shuffled, then taken a few at a time: the samples of those few, a
window, are shuffled together. So disks and page caches meet a few shards at a time, and the mixing
is that of a shuffle buffer as large as the window, but any place in the stream can be computed.

Places count on from epoch to epoch: place p is in epoch p // samples.
"""

import numpy as np
from numpy.typing import NDArray

_SHARDS, _WINDOW, _SUBSTITUTE = 0, 1, 2  # keep the random streams apart


class StreamOrder:
    """A pure function from places in the stream to samples; it keeps the last window at hand."""

    def __init__(self, shard_sizes: NDArray[np.int64], *, seed: int, window_shards: int) -> None:
        """Take the numbers of samples of the shards.

        Raises:
            ValueError: No sample at all, or a window of no shard.
        """
        if window_shards < 1:
            raise ValueError("window_shards must be at least 1")
        if not shard_sizes.sum():
            raise ValueError("the data set has no image")
        self._sizes, self._seed, self._window_shards = shard_sizes, seed, window_shards
        self.num_samples = int(shard_sizes.sum())
        self._epoch_key = self._window_key = (-1, -1)
        self._shards = self._starts = self._samples = np.zeros(0, np.int64)

    def at(self, place: int) -> tuple[int, int]:
        """The sample at a place: its shard and its row in it."""
        epoch, slot = divmod(place, self.num_samples)
        samples, first = self._window_of(epoch, slot)
        return self._locate(samples, slot - first)

    def substitute(self, place: int, attempt: int) -> tuple[int, int]:
        """The sample to try in place of a broken one: another of the same window, drawn again."""
        epoch, slot = divmod(place, self.num_samples)
        samples, _ = self._window_of(epoch, slot)
        rng = np.random.default_rng((self._seed, _SUBSTITUTE, place, attempt))
        return self._locate(samples, int(rng.integers(len(samples))))

    def _locate(self, samples: NDArray[np.int64], slot: int) -> tuple[int, int]:
        shard, row = samples[slot]
        return int(shard), int(row)

    def _window_of(self, epoch: int, slot: int) -> tuple[NDArray[np.int64], int]:
        """The shuffled samples [n, 2] of the window around a slot, and the window's first slot."""
        if self._epoch_key != (epoch, 0):
            rng = np.random.default_rng((self._seed, _SHARDS, epoch))
            self._shards = rng.permutation(len(self._sizes))
            filled = np.cumsum(self._sizes[self._shards])
            ends = filled[self._window_shards - 1 :: self._window_shards]
            self._starts = np.concatenate([[0], ends, filled[-1:]])
            self._epoch_key = (epoch, 0)
        window = int(np.searchsorted(self._starts, slot, side="right")) - 1
        if self._window_key != (epoch, window):
            first = window * self._window_shards
            shards = self._shards[first : first + self._window_shards]
            samples = np.concatenate(
                [
                    np.column_stack([np.full(n, s), np.arange(n)])
                    for s in shards
                    if (n := self._sizes[s])
                ]
            )
            rng = np.random.default_rng((self._seed, _WINDOW, epoch, window))
            self._samples = rng.permutation(samples)
            self._window_key = (epoch, window)
        return self._samples, int(self._starts[window])
