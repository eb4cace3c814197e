"""Scenes as a run's inputs, composed on the fly; batch i is a pure function of the seed and i.

A run therefore resumes at the next batch, and several ranks together see what one alone would.

Shapes: see `training.data.batch`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Tipsv2Tokenizer

from model.text import TEMPLATES
from training.config import DataConfig, TrainingConfig
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
from training.data.folder import DataFolder, seen_names
from training.data.scenes import SceneConfig, SceneSource, compose_scene
from training.data.unnamed import UnnamedSource
from training.evaluate.sets import SegmentationBenchmark, development_benchmarks
from training.run_record import digest

_TOKENIZER_SCENES = 2500


class SceneInputs:
    """Scenes of the seen names."""

    def __init__(self, config: TrainingConfig, data: DataConfig) -> None:
        """Load the drawings.

        Raises:
            FileNotFoundError: Nothing was fetched.
        """
        self._config, self._data = config, data
        self._folder = DataFolder(path=data.folder)
        self._source = self._folder.source(
            "train", styles=data.styles, names=seen_names(), seed=data.seed
        )

    def describe(self) -> Sequence[str]:
        """See `Inputs`."""
        data = self._data
        return (
            f"data: scenes drawn from {data.folder}, of {len(self._source.names)} names in "
            f"{', '.join(data.styles)}; every scene has captions and a list of its objects",
        )

    def tokenizer_texts(self) -> list[str]:
        """Captions of a few thousand scenes; each name is frequent enough for few tokens."""
        return self._captions() + [f"a {name}" for name in sorted(seen_names())] * 40

    def warm_up_texts(self) -> list[str]:
        """Every seen name in every prompt, and the captions of some scenes."""
        templates = ("{}", *TEMPLATES["tcl"])
        prompts = [text.format(name) for text in templates for name in sorted(seen_names())]
        return [*prompts, *dict.fromkeys(self._captions())]

    def batches(self, tokenizer: Tipsv2Tokenizer, share: RunShare) -> "SceneBatches":
        """See `Inputs`."""
        data = self._data
        has_unnamed = any(stage.unnamed for stage in data.stages)
        return SceneBatches(
            self._source,
            tokenizer,
            data,
            share,
            unnamed=self._folder.unnamed(data.seed) if has_unnamed else None,
        )

    def benchmarks(self) -> Sequence[SegmentationBenchmark]:
        """The development scenes."""
        return development_benchmarks(self._folder)

    def facts(self) -> dict[str, Any]:
        """See `Inputs`."""
        path = self._folder.path
        return {"folder": str(path), "digest": digest([path / "sprites.npz"])}

    def _captions(self) -> list[str]:
        small = SceneConfig(size=28, count_weights=(0.2, 0.4, 0.4))
        texts = []
        for index in range(_TOKENIZER_SCENES):
            captions = compose_scene(self._source, index, small).captions
            texts += [captions.short, captions.keywords, captions.scene]
        return texts


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
