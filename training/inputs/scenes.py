"""Scenes as a run's inputs, composed on the fly from the data folder."""

from collections.abc import Sequence
from typing import Any

from transformers import Tipsv2Tokenizer

from model.text import TEMPLATES
from training.config import TrainingConfig
from training.data.batch import RunShare
from training.data.folder import DataFolder, seen_names
from training.data.loader import DataConfig, SceneBatches
from training.data.scenes import SceneConfig, compose_scene
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

    def batches(self, tokenizer: Tipsv2Tokenizer, share: RunShare) -> SceneBatches:
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
