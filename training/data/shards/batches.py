"""Batches of images from disk: batch i is a pure function of the data set, its seed and i.

A run therefore resumes at the next batch without reading those before it, any number of worker
processes makes the same batches, and several ranks together see what one alone would. A broken
sample is replaced by another that depends on its place alone, so batches keep their size.

Order: every epoch shuffles the shards, then takes a few at a time; the samples of those few, a
window, are shuffled together. Disks and page caches see a few shards at a time, and the mixing is
that of a shuffle buffer as large as the window, but any place in the stream can be computed. Places
continue from epoch to epoch: place p is in epoch p // samples.

Shapes: see `training.data.batch`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Tipsv2Tokenizer

from training.data.batch import Batch, RunShare, collate, prefetch
from training.data.captions import CaptionSampling
from training.data.crops import TIPSV2_CROPS, CropConfig, crop_images
from training.data.shards.sample import BadSample, BrokenList, Sample, decode_tensor
from training.data.shards.store import ImageStore
from training.settings import STRICT

_SHARDS, _WINDOW, _SUBSTITUTE = 0, 1, 2  # separate the random streams


class StreamOrder:
    """A pure function from places in the stream to samples; caches the last window."""

    def __init__(self, shard_sizes: NDArray[np.int64], *, seed: int, window_shards: int) -> None:
        """Set the sizes of the shards; nothing is read.

        Raises:
            ValueError: There are no samples.
        """
        if not shard_sizes.sum():
            raise ValueError("the data set has no image")
        self._sizes, self._seed, self._window_shards = shard_sizes, seed, window_shards
        self.num_samples = int(shard_sizes.sum())
        self._cached = (-1, 0, np.zeros((0, 2), np.int64))

    def at(self, place: int) -> tuple[int, int]:
        """The sample at a place: its shard and its row in it."""
        first, samples = self._window_of(place)
        shard, row = samples[place - first]
        return int(shard), int(row)

    def substitute(self, place: int, attempt: int) -> tuple[int, int]:
        """The sample to try in place of a broken one: another of the same window, drawn again."""
        first, samples = self._window_of(place)
        rng = np.random.default_rng((self._seed, _SUBSTITUTE, place, attempt))
        return self.at(first + int(rng.integers(len(samples))))

    def _window_of(self, place: int) -> tuple[int, NDArray[np.int64]]:
        """The first place of the window around a place, and its shuffled samples [n, 2]."""
        first, end, samples = self._cached
        if not first <= place < end:
            self._cached = first, end, samples = self._shuffled(*divmod(place, self.num_samples))
        return first, samples

    def _shuffled(self, epoch: int, slot: int) -> tuple[int, int, NDArray[np.int64]]:
        rng = np.random.default_rng((self._seed, _SHARDS, epoch))
        order = rng.permutation(len(self._sizes))
        filled = np.cumsum(self._sizes[order])
        ends = np.append(filled[self._window_shards - 1 :: self._window_shards], filled[-1])
        window = int(np.searchsorted(ends, slot, side="right"))
        shards = order[window * self._window_shards :][: self._window_shards]
        sizes = self._sizes[shards]
        rows = np.concatenate([np.arange(size) for size in sizes])
        samples = np.column_stack([np.repeat(shards, sizes), rows])
        rng = np.random.default_rng((self._seed, _WINDOW, epoch, window))
        end = epoch * self.num_samples + int(ends[window])
        return end - len(samples), end, rng.permutation(samples)


_MAX_SUBSTITUTES = 50


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ShardsConfig:
    """Images from disk: a folder of shards or of plain images.

    Attributes:
        folder: Contains a manifest and shards, or images with or without captions.
        captions: Captions for each CLS token.
        crops: The global crop and the local ones.
        window_shards: Shards whose samples are shuffled together. More shards mix better, fewer are
            faster on slow disks. Not published; with shards of a thousand samples, 16 make a buffer
            twice as large as the paper's batch.
        seed: Seed of the order, the crops and the choice of captions.
        num_workers: Processes that prefetch batches.
        probe: Folder with a folder of images for each class, named after it: the run is scored on
            them at each validation, by zero-shot classification. Up to 500 images are taken.
    """

    folder: Path
    captions: CaptionSampling = field(default_factory=CaptionSampling)
    crops: CropConfig = TIPSV2_CROPS
    window_shards: PositiveInt = 16
    seed: int = 0
    num_workers: int = 1
    probe: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MadeBatch:
    """A batch, and place and reason of the broken samples that were skipped for it."""

    batch: Batch
    broken: Sequence[tuple[str, str]]


class ImageBatches(Dataset[MadeBatch]):
    """Batches by step number; a trainer uses `loader`."""

    def __init__(
        self,
        store: ImageStore,
        tokenizer: Tipsv2Tokenizer,
        config: ShardsConfig,
        share: RunShare,
        *,
        broken: BrokenList | None = None,
    ) -> None:
        """Prepare the order; nothing is read yet.

        Raises:
            ValueError: Fewer images than the ranks' batches together hold.
        """
        self._store, self._tokenizer = store, tokenizer
        self._config, self._share = config, share
        self.broken = BrokenList() if broken is None else broken
        self._order = StreamOrder(
            store.shard_sizes, seed=config.seed, window_shards=config.window_shards
        )
        wanted = share.batch_size * share.num_ranks
        if self._order.num_samples < wanted:
            raise ValueError(
                f"{config.folder} holds {self._order.num_samples} images, fewer than one step's "
                f"{wanted}: lower batch_size or add images"
            )

    def __len__(self) -> int:
        return self._share.num_steps

    def __getitem__(self, step: int) -> MadeBatch:
        """Make the batch of one step."""
        places, broken = self._share.places(step), list[tuple[str, str]]()
        seed, sampling = self._config.seed, self._config.captions
        samples, images = zip(*(self._take(place, broken) for place in places), strict=True)
        chosen = [
            sampling.choose_at(sample.captions, seed=seed, place=place)
            for place, sample in zip(places, samples, strict=True)
        ]
        crops = crop_images(images, self._config.crops, seed=seed, first=places.start)
        batch = collate(chosen, [()] * len(chosen), self._tokenizer, step=step, crops=crops)
        return MadeBatch(batch=batch, broken=broken)

    def loader(self, first_step: int, *, num_workers: int) -> Iterator[Batch]:
        """Iterate from a step on, prefetched by worker processes; records broken samples."""
        steps = range(first_step, len(self))
        for item in prefetch(self, steps, num_workers=num_workers, per_worker=2):
            for place, reason in item.broken:
                self.broken.add(place, reason)
            yield item.batch

    def _take(self, place: int, broken: list[tuple[str, str]]) -> tuple[Sample, Tensor]:
        """Read and decode the sample at a place, or the first good one of its substitutes."""
        where = self._order.at(place)
        for attempt in range(_MAX_SUBSTITUTES):
            try:
                sample = self._store.read(*where)
                return sample, decode_tensor(sample.image, wanted_side=_wanted(self._config.crops))
            except BadSample as error:
                broken.append((self._store.name(*where), str(error)))
            where = self._order.substitute(place, attempt)
        raise ValueError(
            f"{_MAX_SUBSTITUTES} samples in a row are broken, the last one "
            f"{': '.join(broken[-1])}; check {self._config.folder}"
        )


def _wanted(crops: CropConfig) -> int:
    """Smallest image side at which no crop is enlarged."""
    sides = [crops.global_size / math.sqrt(crops.global_scale[0])]
    if crops.num_local:
        sides.append(crops.local_size / math.sqrt(crops.local_scale[0]))
    return math.ceil(max(sides))
