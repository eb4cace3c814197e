"""Batches of scenes: batch number i is a pure function of the data set's seed and i.

Shapes: B batch, L tokens, U distinct names in the batch, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Tipsv2Tokenizer

from model.text import TEMPLATES
from training.data.scenes import Scene, SceneConfig, SceneSource, compose_scene

_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextBatch:
    """Tokenised texts: int64 [B, L] ids, right-padded with 0, and the mask of real tokens."""

    token_ids_BL: Tensor
    mask_BL: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneBatch:
    """What a training step sees. There are no masks in it.

    Attributes:
        pixels_B3HW: float32 in [0, 1].
        short: Captions for CLS1.
        short_ids_B: Equal captions have equal ids.
        long: Captions for CLS2, keywords or whole scenes at even odds.
        long_ids_B: As above.
        names: The distinct names in the batch's captions, [U, L].
        present_BU: bool; which picture's caption has which name.
        targets_BT: float32; for pictures of one drawing, what a frozen trunk sees in it; else zero.
    """

    pixels_B3HW: Tensor
    short: TextBatch
    short_ids_B: Tensor
    long: TextBatch
    long_ids_B: Tensor
    names: TextBatch
    present_BU: Tensor
    targets_BT: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of a curriculum: scenes look like `scenes` until this share of the steps is done."""

    until: float = 1.0
    scenes: SceneConfig = field(default_factory=SceneConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Which batches a run is made of.

    Attributes:
        stages: The curriculum, in order; the last stage lasts until 1.0.
        batch_size: Scenes in a batch of one rank.
        num_steps: Batches of the whole run.
    """

    stages: Sequence[Stage]
    batch_size: int
    num_steps: int

    def __post_init__(self) -> None:
        """Check that every step has a stage."""
        if not self.stages or self.stages[-1].until < 1:
            raise ValueError("the last stage of a curriculum must last until 1.0")

    def scenes_at(self, step: int) -> SceneConfig:
        """What scenes look like at a step."""
        stage = next(s for s in self.stages if step < s.until * self.num_steps or s.until >= 1)
        return stage.scenes


def tokenize(tokenizer: Tipsv2Tokenizer, texts: Sequence[str]) -> TextBatch:
    """Tokenise texts, cut at 64 tokens, padded to the longest of them."""
    encoded = tokenizer(
        list(texts), padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
    )
    return TextBatch(token_ids_BL=encoded["input_ids"], mask_BL=encoded["attention_mask"])


def _ids(texts: Sequence[str]) -> Tensor:
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return torch.tensor([numbers[text] for text in texts])


def collate(
    rng: np.random.Generator,
    scenes: Sequence[Scene],
    tokenizer: Tipsv2Tokenizer,
    targets_MT: NDArray[np.float32],
) -> SceneBatch:
    """Make a batch of scenes; the masks are left behind here."""
    pixels = np.stack([scene.pixels_SS3 for scene in scenes])
    captions = [scene.captions for scene in scenes]
    short = [caption.short for caption in captions]
    long = [c.keywords if rng.random() < 0.5 else c.scene for c in captions]
    names = sorted({name for caption in captions for name in caption.names})
    templates = (*TEMPLATES["tcl"], *(["{}"] * len(TEMPLATES["tcl"])))
    prompts = [templates[rng.integers(len(templates))].format(name) for name in names]
    present = torch.tensor([[name in caption.names for name in names] for caption in captions])
    return SceneBatch(
        pixels_B3HW=torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0,
        short=tokenize(tokenizer, short),
        short_ids_B=_ids(short),
        long=tokenize(tokenizer, long),
        long_ids_B=_ids(long),
        names=tokenize(tokenizer, prompts),
        present_BU=present,
        targets_BT=_targets(scenes, targets_MT),
    )


def _targets(scenes: Sequence[Scene], targets_MT: NDArray[np.float32]) -> Tensor:
    targets = np.zeros((len(scenes), targets_MT.shape[1]), np.float32)
    for row, scene in enumerate(scenes):
        if len(scene.drawings) == 1:
            targets[row] = targets_MT[scene.drawings[0]]
    return torch.from_numpy(targets)


class SceneBatches(Dataset[SceneBatch]):
    """Batches by step number, following a curriculum of stages; each rank has its own scenes."""

    def __init__(
        self,
        source: SceneSource,
        tokenizer: Tipsv2Tokenizer,
        plan: BatchPlan,
        *,
        targets_MT: NDArray[np.float32] | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._source, self._tokenizer, self._plan = source, tokenizer, plan
        self._rank, self._num_ranks = rank, num_ranks
        no_targets = np.zeros((len(source.bank.rgba_MSS4), 0), np.float32)
        self._targets_MT = no_targets if targets_MT is None else targets_MT

    def __len__(self) -> int:
        return self._plan.num_steps

    def __getitem__(self, step: int) -> SceneBatch:
        """Make the batch of one step."""
        size, config = self._plan.batch_size, self._plan.scenes_at(step)
        first = (step * self._num_ranks + self._rank) * size
        scenes = [
            compose_scene(self._source, index, config) for index in range(first, first + size)
        ]
        rng = np.random.default_rng((self._source.seed, first, 7))
        return collate(rng, scenes, self._tokenizer, self._targets_MT)

    def loader(self, first_step: int, *, num_workers: int) -> DataLoader[SceneBatch]:
        """Iterate from a step on, made ahead in worker processes."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(first_step, self._plan.num_steps),
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=_limit_threads,
        )


def _limit_threads(_worker: int) -> None:
    torch.set_num_threads(1)
