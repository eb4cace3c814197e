"""Batches of scenes: batch i is a pure function of the data set's seed and i.

A run therefore resumes at the next batch, and several ranks together see what one alone would.

Shapes: see `training.data.batch`.
"""

from dataclasses import field
from pathlib import Path

import numpy as np
import torch
from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass
from torch.utils.data import DataLoader, Dataset
from transformers import Tipsv2Tokenizer

from training.data.batch import (
    Batch,
    RunShare,
    UnnamedDrawings,
    collate,
    prefetch,
    text_ids,
    tokenize,
    uncropped,
)
from training.data.captions import SCENE_CAPTIONS, CaptionSampling
from training.data.folder import TRAIN_STYLES
from training.data.scenes import SceneConfig, SceneSource, compose_scene
from training.data.unnamed import UnnamedSource
from training.settings import STRICT


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Stage:
    """One stage of a curriculum: scenes, and further drawings without a concept's name in a batch.

    It ends at the share `until` of the steps.
    """

    until: float = 1.0
    scenes: SceneConfig = field(default_factory=SceneConfig)
    unnamed: NonNegativeInt = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DataConfig:
    """Scenes that are composed during training; `ShardsConfig` is for images from disk.

    Attributes:
        folder: Filled by `python -m training data`.
        styles: Drawing styles.
        stages: The curriculum, in order; the last stage lasts until 1.0.
        num_workers: Processes that prefetch batches.
    """

    folder: Path = Path("data")
    styles: tuple[str, ...] = TRAIN_STYLES
    stages: tuple[Stage, ...] = (Stage(),)
    captions: CaptionSampling = SCENE_CAPTIONS
    seed: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        """Check that every step has a stage."""
        if not self.stages or self.stages[-1].until < 1:
            raise ValueError("the last stage of a curriculum must last until 1.0")

    def stage_at(self, step: int, num_steps: int) -> Stage:
        """The stage of a step."""
        return next(s for s in self.stages if step < s.until * num_steps or s.until >= 1)


class SceneBatches(Dataset[Batch]):
    """Batches by step number, following a curriculum; each rank has its own scenes.

    Raises:
        ValueError: The curriculum has unnamed drawings, but there is no source for them.
    """

    def __init__(
        self,
        source: SceneSource,
        tokenizer: Tipsv2Tokenizer,
        config: DataConfig,
        share: RunShare,
        *,
        unnamed: UnnamedSource | None = None,
    ) -> None:
        self._source, self._tokenizer = source, tokenizer
        self._config, self._share = config, share
        if unnamed is None and any(stage.unnamed for stage in config.stages):
            raise ValueError("a stage has unnamed drawings, but there is no source for them")
        self._unnamed = unnamed

    def __len__(self) -> int:
        return self._share.num_steps

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of one step."""
        stage = self._config.stage_at(step, len(self))
        places, seed = self._share.places(step), self._source.seed
        scenes = [compose_scene(self._source, place, stage.scenes) for place in places]
        chosen = [
            self._config.captions.choose_at(scene.captions.by_source(), seed=seed, place=place)
            for place, scene in zip(places, scenes, strict=True)
        ]
        images = [torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1) for scene in scenes]
        unnamed = self._draw_unnamed(step, stage.unnamed)
        names = [scene.captions.names for scene in scenes]
        crops = uncropped(torch.stack(images))
        return collate(chosen, names, self._tokenizer, step=step, crops=crops, unnamed=unnamed)

    def _draw_unnamed(self, step: int, count: int) -> UnnamedDrawings | None:
        if self._unnamed is None or count == 0:
            return None
        pairs = [self._unnamed.image(place) for place in self._share.places(step, count)]
        titles = [title for _, title in pairs]
        known = [title for title in titles if title]
        pixels_Ehw3 = torch.from_numpy(np.stack([pixels for pixels, _ in pairs]))
        return UnnamedDrawings(
            pixels_E3hw=pixels_Ehw3.permute(0, 3, 1, 2).contiguous(),
            titled_E=torch.tensor([bool(title) for title in titles]),
            titles=tokenize(self._tokenizer, known),
            title_ids_T=text_ids(known),
        )

    def loader(self, first_step: int, *, num_workers: int) -> DataLoader[Batch]:
        """Iterate from a step on, prefetched by worker processes."""
        return prefetch(self, range(first_step, len(self)), num_workers=num_workers)
