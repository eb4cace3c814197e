"""Batches of images from disk: batch number i is a pure function of the data set, its seed and i.

So a run resumes on the very next batch without reading those before it, any number of worker
processes makes the same batches, and several ranks together see what one alone would. A broken
sample is replaced by another that depends on its place alone, so batches keep their size.

Shapes: those of a batch are in its own module.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Tipsv2Tokenizer

from training.data import loading_process
from training.data.batch import Batch, name_columns, text_ids, tokenize
from training.data.caption_sampling import CaptionSampling
from training.data.crops import TIPSV2_CROPS, CropConfig, crop_images
from training.data.shards.broken import BrokenList, BrokenSample
from training.data.shards.decoding import ImageLimits, decode_image
from training.data.shards.order import StreamOrder
from training.data.shards.sample import BadSample, Sample
from training.data.shards.store import ImageStore

_CAPTIONS = 7  # keeps the choice of captions apart from other random streams
_MAX_SUBSTITUTES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsConfig:
    """Images from disk: a folder of shards, or of plain images.

    Attributes:
        folder: Holds a manifest and shards, or else images, with or without captions.
        captions: Which captions supervise which CLS token.
        crops: The global crop and the local ones.
        window_shards: Shards whose samples are shuffled together: more mix better, fewer are
            kinder to slow disks. Not published; with shards of a thousand, 16 make a buffer twice
            as large as the paper's batch.
        limits: Which images are left out.
        seed: Of the order, the crops and the choice of captions.
        num_workers: Processes that make batches ahead.
    """

    folder: Path
    captions: CaptionSampling = field(default_factory=CaptionSampling)
    crops: CropConfig = TIPSV2_CROPS
    window_shards: int = 16
    limits: ImageLimits = field(default_factory=ImageLimits)
    seed: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        """Check the window."""
        if self.window_shards < 1:
            raise ValueError("data.window_shards must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunShare:
    """Which part of which batches a rank makes.

    Attributes:
        batch_size: Images in a batch of one rank.
        num_steps: Batches of the whole run.
        rank: This process's number.
        num_ranks: Of how many.
    """

    batch_size: int
    num_steps: int
    rank: int = 0
    num_ranks: int = 1

    def first_place(self, step: int) -> int:
        """The place in the stream of the first image of this rank's batch."""
        return (step * self.num_ranks + self.rank) * self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MadeBatch:
    """A batch, and the broken samples that were passed over for it."""

    batch: Batch
    broken: Sequence[BrokenSample]


class ImageBatches(Dataset[MadeBatch]):
    """Batches by step number; `loader` is what a trainer uses."""

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
        first, broken = self._share.first_place(step), list[BrokenSample]()
        places = range(first, first + self._share.batch_size)
        samples, images = zip(*(self._take(place, broken) for place in places), strict=True)
        chosen = [self._choose(place, s) for place, s in zip(places, samples, strict=True)]
        crops = crop_images(images, self._config.crops, seed=self._config.seed, first=first)
        return MadeBatch(batch=self._collate(samples, chosen, crops, step), broken=broken)

    def loader(self, first_step: int, *, num_workers: int) -> Iterator[Batch]:
        """Iterate from a step on, made ahead in worker processes; broken samples are recorded."""
        made: DataLoader[MadeBatch] = DataLoader(
            self,
            batch_size=None,
            sampler=range(first_step, len(self)),
            num_workers=num_workers,
            prefetch_factor=2 if num_workers else None,
            worker_init_fn=loading_process.begin,
        )
        for item in made:
            self.broken.add(item.broken)
            yield item.batch

    def _take(self, place: int, broken: list[BrokenSample]) -> tuple[Sample, Tensor]:
        """Read and decode the sample at a place, or the first good one of its substitutes."""
        where = self._order.at(place)
        for attempt in range(_MAX_SUBSTITUTES):
            try:
                sample = self._store.read(*where)
                return sample, decode_image(
                    sample.image, self._config.limits, wanted_side=_wanted(self._config.crops)
                )
            except BadSample as error:
                broken.append(BrokenSample(place=self._store.name(*where), reason=str(error)))
            where = self._order.substitute(place, attempt)
        raise ValueError(
            f"{_MAX_SUBSTITUTES} samples in a row are broken, the last one "
            f"{broken[-1].place}: {broken[-1].reason}; check {self._config.folder}"
        )

    def _choose(self, place: int, sample: Sample) -> tuple[str, str] | None:
        rng = np.random.default_rng((self._config.seed, place, _CAPTIONS))
        return self._config.captions.choose(sample.captions, rng)

    def _collate(
        self,
        samples: Sequence[Sample],
        chosen: Sequence[tuple[str, str] | None],
        crops: tuple[Tensor, Tensor],
        step: int,
    ) -> Batch:
        pairs = [pair for pair in chosen if pair is not None]
        first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        by_image = [sample.names for sample in samples]
        names, name_ids_U, present_BU = name_columns(by_image, self._tokenizer, step=step)
        return Batch(
            pixels_B3HW=crops[0],
            locals_CB3hw=crops[1],
            captioned_B=torch.tensor([pair is not None for pair in chosen]),
            cls1=tokenize(self._tokenizer, first),
            cls1_ids_T=text_ids(first),
            cls2=tokenize(self._tokenizer, second),
            cls2_ids_T=text_ids(second),
            names=names,
            name_ids_U=name_ids_U,
            present_BU=present_BU,
        )


def _wanted(crops: CropConfig) -> int:
    """The side at which the smallest crop of each kind is not yet enlarged; 0 is full size."""
    if crops.global_size is None:
        return 0
    sides = [crops.global_size / math.sqrt(crops.global_scale[0])]
    if crops.num_local:
        sides.append(crops.local_size / math.sqrt(crops.local_scale[0]))
    return math.ceil(max(sides))
