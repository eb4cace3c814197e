"""Images from disk as a run's inputs: shards or a plain folder, with captions or without."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from transformers import Tipsv2Tokenizer

from training.config import TrainingConfig
from training.data.batch import RunShare
from training.data.shards.batches import ImageBatches, ShardsConfig
from training.data.shards.sample import BadSample, BrokenList, DataSummary
from training.data.shards.store import open_store
from training.evaluate.ranking import ClassificationBenchmark, labelled_folder
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.methods.space import SpaceConfig

BROKEN_FILE = "broken.jsonl"
_NUM_TEXTS = 100_000


class ImageInputs:
    """A folder of shards or of images.

    Attributes:
        summary: Counts of images and captions.
    """

    def __init__(self, config: TrainingConfig, data: ShardsConfig) -> None:
        """Open the folder; no image is read.

        Raises:
            FileNotFoundError: It holds neither shards nor images.
            ValueError: The images lack what the losses need.
        """
        self._config, self._data = config, data
        self._store = open_store(data.folder)
        self.summary = self._store.summary
        check_losses(config, self.summary)

    def describe(self) -> Sequence[str]:
        """See `Inputs`."""
        return (
            f"data: {self._data.folder} holds {self._store.kind}: {self.summary}",
            *describe_losses(self._config, self._data, self.summary),
        )

    def tokenizer_texts(self) -> list[str]:
        """The captions in stored order, 100,000 at most.

        Raises:
            ValueError: There are no captions.
        """
        texts = list(islice(self._captions(), _NUM_TEXTS))
        if not texts:
            raise ValueError(
                f"{self._data.folder} has no captions to train a tokenizer on: give a teacher or a "
                "start, whose tokenizer is then used"
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

    def benchmarks(self) -> Sequence[ClassificationBenchmark]:
        """The probe, if there is one; the images themselves have no labels."""
        if self._data.probe is None:
            return ()
        return (labelled_folder(self._data.probe, size=self._data.crops.global_size),)

    def facts(self) -> dict[str, Any]:
        """See `Inputs`."""
        return {"folder": str(self._data.folder), "digest": self._store.digest}

    def _captions(self) -> Iterator[str]:
        for shard, size in enumerate(self._store.shard_sizes):
            for row in range(int(size)):
                try:
                    yield from self._store.read(shard, row).captions.values()
                except BadSample:
                    continue


def check_losses(config: TrainingConfig, counts: DataSummary) -> None:
    """Check that the data has what the losses need.

    Raises:
        ValueError: It lacks something; the message says what to change.
    """
    method = config.method
    assert not isinstance(method, SpaceConfig)  # TrainingConfig pairs it with views
    if max(method.names_weight, method.image_backbone.titles_weight) > 0:
        raise ValueError(
            "method.names_weight and method.image_backbone.titles_weight need drawn scenes, the "
            "only data with names and titles: set them to 0 for images from disk"
        )
    learns_from_captions = counts.num_captioned > 0 and method.contrast_weight > 0
    if isinstance(method, PretrainConfig) and not learns_from_captions and method.ema != "full":
        raise ValueError(
            f"pretraining with method.ema={method.ema!r} needs captions, which prevent a collapse "
            "of the encoder: add captions (see `python -m training caption`), distil a teacher "
            "instead, or set method.ema=full"
        )


def describe_losses(
    config: TrainingConfig, data: ShardsConfig, counts: DataSummary
) -> Sequence[str]:
    """A line for each loss: on or off, with the data that it uses or the reason."""
    method, crops = config.method, data.crops
    assert not isinstance(method, SpaceConfig)
    lines = [*_caption_lines(config, data, counts)]
    side = crops.local_size
    cut = crops.num_local and f"{crops.num_local} crops of {side} x {side} pixels of every image"
    dino = _words("dino_weight", method.dino_weight, cut or "", "data.crops.num_local is 0")
    lines.append(f"local crops (DINO): {dino}")
    mask = f"{method.mask_ratio:.0%} masked" if method.mask_ratio else "no mask"
    which = "every patch" if method.supervised == "all" else "masked patches"
    if isinstance(method, PretrainConfig):
        kind = "iBOT++" if method.supervised == "all" else "iBOT"
        words = _words("ibot_weight", method.ibot_weight, f"{kind}, {which}, {mask}")
    else:
        use = f"{which} from the teacher's {method.patch_loss}, {mask}"
        words = _words("patch_weight", method.patch_weight, use)
    lines.append(f"patches: {words}")
    backbone = method.image_backbone
    if backbone.weight:  # TIPSv2 has none, so "off" needs no line
        until = f"{backbone.scenes_until:.0%}"
        lines.append(f"image backbone: on, every patch until {until} of the steps")
    return lines


def _words(setting: str, weight: float, use: str, lack: str = "") -> str:
    """What a loss of this weight uses, or why it is off."""
    if weight == 0:
        return f"off, method.{setting} is 0"
    return f"on, weight {weight:g}, {use}" if use else f"off, {lack}"


def _caption_lines(
    config: TrainingConfig, data: ShardsConfig, counts: DataSummary
) -> Iterator[str]:
    captioned = counts.num_captioned
    use = f"{captioned} of {counts.num_images} images have a caption" if captioned else ""
    words = _words("contrast_weight", config.method.contrast_weight, use, "no image has a caption")
    yield f"contrast with captions: {words}"
    if not captioned:
        yield f"text tower: {_untrained_text_tower(config)}"
    elif config.method.contrast_weight:
        for token in ("cls1", "cls2"):
            sources = getattr(data.captions, token)
            found = {name: counts.caption_sources.get(name, 0) for name in sources}
            line = f"  {token.upper()} from " + ", ".join(f"{s} {num}" for s, num in found.items())
            if sum(found.values()) < captioned:
                line += f"; images without these use other captions (data.captions.{token})"
            yield line


def _untrained_text_tower(config: TrainingConfig) -> str:
    """The state of a text tower without captions to train on."""
    if isinstance(config.method, DistillConfig) and config.method.text_start == "teacher":
        return "the teacher's, unchanged; the student's images are embedded in its space"
    if config.start is not None:
        return f"that of {config.start}, unchanged"
    return "random and not trained: use this model for images only, not with texts"
