"""Batches of scenes: batch i is a pure function of the data set's seed and i.

A run therefore resumes at the next batch, and several ranks together see what one alone would.

Shapes: see `training.data.batch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Tipsv2Tokenizer

from training.data.batch import (
    Batch,
    UnnamedDrawings,
    begin_loading,
    collate,
    text_ids,
    tokenize,
)
from training.data.captions import SCENE_CAPTIONS, CaptionSampling
from training.data.crops import CropConfig, crop_images
from training.data.scenes import Scene, SceneConfig, SceneSource, compose_scene
from training.data.unnamed import UnnamedSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a curriculum.

    Attributes:
        until: Share of the steps at which the stage ends.
        scenes: Settings of its scenes.
        unnamed: Number of further drawings without a concept's name in each batch of a rank.
    """

    until: float = 1.0
    scenes: SceneConfig = field(default_factory=SceneConfig)
    unnamed: int = 0

    def __post_init__(self) -> None:
        """Check the count."""
        if self.unnamed < 0:
            raise ValueError("a stage's unnamed must not be below 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """The batches of a run.

    Attributes:
        stages: The curriculum, in order; the last stage lasts until 1.0.
        batch_size: Scenes in a batch of one rank.
        num_steps: Batches of the whole run.
        captions: Captions for each CLS token.
        crops: Local crops of each scene; without a global size the global crop is the whole scene.
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

    def stage_at(self, step: int) -> Stage:
        """The stage of a step."""
        return next(s for s in self.stages if step < s.until * self.num_steps or s.until >= 1)


class SceneBatches(Dataset[Batch]):
    """Batches by step number, following a curriculum; each rank has its own scenes.

    Raises:
        ValueError: The curriculum has unnamed drawings, but there is no source for them.
    """

    def __init__(
        self,
        source: SceneSource,
        tokenizer: Tipsv2Tokenizer,
        plan: BatchPlan,
        *,
        unnamed: UnnamedSource | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._source, self._tokenizer, self._plan = source, tokenizer, plan
        self._rank, self._num_ranks = rank, num_ranks
        if unnamed is None and any(stage.unnamed for stage in plan.stages):
            raise ValueError("a stage has unnamed drawings, but there is no source for them")
        self._unnamed = unnamed

    def __len__(self) -> int:
        return self._plan.num_steps

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of one step."""
        size, stage = self._plan.batch_size, self._plan.stage_at(step)
        first = (step * self._num_ranks + self._rank) * size
        scenes = [
            compose_scene(self._source, index, stage.scenes) for index in range(first, first + size)
        ]
        chosen = [self._choose(index, scene) for index, scene in enumerate(scenes, start=first)]
        images = [torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1) for scene in scenes]
        crops = crop_images(images, self._plan.crops, seed=self._source.seed, first=first)
        unnamed = self._draw_unnamed(step, stage.unnamed)
        names = [scene.captions.names for scene in scenes]
        return collate(chosen, names, self._tokenizer, step=step, crops=crops, unnamed=unnamed)

    def _draw_unnamed(self, step: int, count: int) -> UnnamedDrawings | None:
        if self._unnamed is None or count == 0:
            return None
        first = (step * self._num_ranks + self._rank) * count
        pairs = [self._unnamed.image(index) for index in range(first, first + count)]
        titles = [title for _, title in pairs]
        known = [title for title in titles if title]
        pixels_Ehw3 = torch.from_numpy(np.stack([pixels for pixels, _ in pairs]))
        return UnnamedDrawings(
            pixels_E3hw=pixels_Ehw3.permute(0, 3, 1, 2).contiguous(),
            titled_E=torch.tensor([bool(title) for title in titles]),
            titles=tokenize(self._tokenizer, known),
            title_ids_T=text_ids(known),
        )

    def _choose(self, index: int, scene: Scene) -> tuple[str, str] | None:
        rng = np.random.default_rng((self._source.seed, index, 7))
        return self._plan.captions.choose(scene.captions.by_source(), rng)

    def loader(self, first_step: int, *, num_workers: int) -> DataLoader[Batch]:
        """Iterate from a step on, prefetched by worker processes."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(first_step, self._plan.num_steps),
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=begin_loading,
        )
