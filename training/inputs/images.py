"""Images from disk as a run's inputs: shards, or a plain folder, with captions or without."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from transformers import Tipsv2Tokenizer

from training.config import TrainingConfig
from training.data.shards.batches import ImageBatches, RunShare, ShardsConfig
from training.data.shards.broken import BrokenList
from training.data.shards.image_folder import ImageFolder
from training.data.shards.manifest import MANIFEST_FILE, ShardStore
from training.data.shards.opening import open_store
from training.data.shards.sample import BadSample
from training.data.shards.summary import DataSummary
from training.evaluate.benchmark import SegmentationBenchmark
from training.inputs.image_losses import check_losses, describe_losses
from training.run_record import digest

BROKEN_FILE = "broken.jsonl"
_NUM_TEXTS = 100_000


class ImageInputs:
    """A folder of shards or of images."""

    def __init__(self, config: TrainingConfig, data: ShardsConfig) -> None:
        """Open the folder; no image is read.

        Raises:
            FileNotFoundError: It holds neither shards nor images.
            ValueError: The losses need what the images do not have.
        """
        self._config, self._data = config, data
        self._store = open_store(data.folder)
        check_losses(config, self.summary)

    @cached_property
    def summary(self) -> DataSummary:
        """Counts of images and captions."""
        return self._store.summary()

    def describe(self) -> Sequence[str]:
        """See `Inputs`."""
        kind = "shards" if isinstance(self._store, ShardStore) else "a plain folder"
        counts = self.summary
        sources = ", ".join(f"{name} {num}" for name, num in counts.caption_sources.items())
        captions = (
            f"{counts.num_captioned} of them with captions ({sources})"
            if counts.num_captioned
            else "none of them with a caption"
        )
        return (
            f"data: {counts.num_images} images in {self._data.folder}, {kind}, {captions}",
            *describe_losses(self._config, self._data, counts),
        )

    def tokenizer_texts(self) -> list[str]:
        """The captions in the order in which they are stored, 100,000 at most.

        Raises:
            ValueError: There are none.
        """
        texts = []
        for text in self._captions():
            texts.append(text)
            if len(texts) == _NUM_TEXTS:
                break
        if not texts:
            raise ValueError(
                f"{self._data.folder} holds no caption that a tokenizer could be trained on: give "
                "a teacher or a start, whose tokenizer is then used"
            )
        return texts

    def warm_up_texts(self) -> list[str]:
        """The distinct captions among the same."""
        return list(dict.fromkeys(self.tokenizer_texts()))

    def batches(self, tokenizer: Tipsv2Tokenizer, share: RunShare) -> ImageBatches:
        """See `Inputs`; broken samples are listed in the run's folder."""
        name = BROKEN_FILE if share.num_ranks == 1 else f"rank-{share.rank}-{BROKEN_FILE}"
        broken = BrokenList(self._config.folder / name)
        return ImageBatches(self._store, tokenizer, self._data, share, broken=broken)

    def benchmarks(self) -> Sequence[SegmentationBenchmark]:
        """None: nobody knows what the images show where."""
        return ()

    def facts(self) -> dict[str, Any]:
        """See `Inputs`."""
        folder = self._data.folder
        if isinstance(self._store, ImageFolder):
            return {"folder": str(folder), "digest": self._store.fingerprint()}
        return {"folder": str(folder), "digest": digest([folder / MANIFEST_FILE])}

    def _captions(self) -> Iterator[str]:
        for shard, size in enumerate(self._store.shard_sizes):
            for row in range(int(size)):
                try:
                    yield from self._store.read(shard, row).captions.values()
                except BadSample:
                    continue
