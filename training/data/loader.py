"""Batches of scenes: batch number i is a pure function of the data set's seed and i.

So a run resumes on the very next batch, and several ranks together see what one alone would.

Shapes: M drawings, K the trunk's width; those of a batch are in its own module.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Tipsv2Tokenizer

from training.data.batch import Batch, name_columns, text_ids, tokenize
from training.data.caption_sampling import SCENE_CAPTIONS, CaptionSampling
from training.data.crops import CropConfig, crop_pictures
from training.data.scenes import Scene, SceneConfig, SceneSource, compose_scene


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
        captions: Which captions supervise which CLS token.
        crops: Local crops of each scene; the global crop is the scene itself where no size is set.
    """

    stages: Sequence[Stage]
    batch_size: int
    num_steps: int
    captions: CaptionSampling = SCENE_CAPTIONS
    crops: CropConfig = field(default_factory=CropConfig)

    def __post_init__(self) -> None:
        """Check that every step has a stage."""
        if not self.stages or self.stages[-1].until < 1:
            raise ValueError("the last stage of a curriculum must last until 1.0")

    def scenes_at(self, step: int) -> SceneConfig:
        """What scenes look like at a step."""
        stage = next(s for s in self.stages if step < s.until * self.num_steps or s.until >= 1)
        return stage.scenes


def collate(
    chosen: Sequence[tuple[str, str]],
    scenes: Sequence[Scene],
    tokenizer: Tipsv2Tokenizer,
    *,
    step: int,
    crops: tuple[Tensor, Tensor],
    targets_MK: NDArray[np.float32],
) -> Batch:
    """Make a batch of scenes, their chosen captions and their global and local crops.

    The masks are left behind here.
    """
    by_scene = [scene.captions.names for scene in scenes]
    names, name_ids_U, present_BU = name_columns(by_scene, tokenizer, step=step)
    first, second = zip(*chosen, strict=True)
    return Batch(
        pixels_B3HW=crops[0],
        locals_CB3hw=crops[1],
        captioned_B=torch.ones(len(scenes), dtype=torch.bool),
        cls1=tokenize(tokenizer, first),
        cls1_ids_T=text_ids(first),
        cls2=tokenize(tokenizer, second),
        cls2_ids_T=text_ids(second),
        names=names,
        name_ids_U=name_ids_U,
        present_BU=present_BU,
        targets_BK=_targets(scenes, targets_MK),
    )


def _targets(scenes: Sequence[Scene], targets_MK: NDArray[np.float32]) -> Tensor:
    targets = np.zeros((len(scenes), targets_MK.shape[1]), np.float32)
    for row, scene in enumerate(scenes):
        if len(scene.drawings) == 1:
            targets[row] = targets_MK[scene.drawings[0]]
    return torch.from_numpy(targets)


class SceneBatches(Dataset[Batch]):
    """Batches by step number, following a curriculum of stages; each rank has its own scenes."""

    def __init__(
        self,
        source: SceneSource,
        tokenizer: Tipsv2Tokenizer,
        plan: BatchPlan,
        *,
        targets_MK: NDArray[np.float32] | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._source, self._tokenizer, self._plan = source, tokenizer, plan
        self._rank, self._num_ranks = rank, num_ranks
        no_targets = np.zeros((len(source.bank.rgba_MSS4), 0), np.float32)
        self._targets_MK = no_targets if targets_MK is None else targets_MK

    def __len__(self) -> int:
        return self._plan.num_steps

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of one step."""
        size, config = self._plan.batch_size, self._plan.scenes_at(step)
        first = (step * self._num_ranks + self._rank) * size
        scenes = [
            compose_scene(self._source, index, config) for index in range(first, first + size)
        ]
        chosen = [self._choose(index, scene) for index, scene in enumerate(scenes, start=first)]
        pictures = [torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1) for scene in scenes]
        crops = crop_pictures(pictures, self._plan.crops, seed=self._source.seed, first=first)
        return collate(
            chosen, scenes, self._tokenizer, step=step, crops=crops, targets_MK=self._targets_MK
        )

    def _choose(self, index: int, scene: Scene) -> tuple[str, str]:
        rng = np.random.default_rng((self._source.seed, index, 7))
        chosen = self._plan.captions.choose(scene.captions.by_source(), rng)
        assert chosen is not None  # every scene shows something
        return chosen

    def loader(self, first_step: int, *, num_workers: int) -> DataLoader[Batch]:
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
