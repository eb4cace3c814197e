"""Named sets of evaluation scenes, and a quick score of a model on one of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.data.concepts import all_concepts
from training.data.folder import EMOJI_TRAIN_STYLES, DataFolder, common_names
from training.data.scenes import Scene, SceneConfig, SceneSource, compose_scene
from training.evaluate.encoder import SceneEncoder
from training.evaluate.zero_shot_segmentation import (
    SceneCounts,
    count_scenes,
    largest_object_scorer,
    painted_scorer,
    patch_scorer,
)

# Two or three objects: a single one would reward painting the whole image.
MULTI_OBJECT = SceneConfig(count_weights=(0.0, 0.5, 0.5), twin_share=0.0, common_share=1.0)
PATCH = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationBenchmark:
    """Scenes and the candidate names they are scored with.

    Attributes:
        name: Of the set.
        scenes: All of one size.
        names: The candidates.
        is_retrieved: Whether the scenes' captions are searched as well.
    """

    name: str
    scenes: Sequence[Scene]
    names: Sequence[str]
    is_retrieved: bool = False

    def quick_scores(self, model: Tipsv2Model, tokenizer: Tipsv2Tokenizer) -> dict[str, float]:
        """Compute mIoU of final patches, value path and painted CLS1, without intervals."""
        encoder = SceneEncoder(model, tokenizer, self.scenes)
        classes = encoder.classes(self.names, "none")
        row = {}
        for kind in ("patches", "values"):
            scorer = patch_scorer(partial(encoder.feature, kind), classes, PATCH)
            counts = count_scenes(self.scenes, self.names, scorer)
            row[f"{self.name}/{kind}"] = round(counts.miou(), 2)
            row[f"{self.name}/{kind}_which"] = round(counts.which(), 2)
        painted = painted_scorer(partial(encoder.feature, "cls1"), classes)
        row[f"{self.name}/painted"] = round(
            count_scenes(self.scenes, self.names, painted).miou(), 2
        )
        return row

    def chance(self) -> SceneCounts:
        """Count what blind guesses among the names are expected to get."""
        return count_scenes(self.scenes, self.names, largest_object_scorer(self.names)).guessed()


def make_benchmark(
    name: str, source: SceneSource, num_scenes: int, *, is_retrieved: bool = False
) -> SegmentationBenchmark:
    """Compose a benchmark's scenes; its candidates are the source's names."""
    scenes = [compose_scene(source, index, MULTI_OBJECT) for index in range(num_scenes)]
    names = sorted(source.names)
    return SegmentationBenchmark(name=name, scenes=scenes, names=names, is_retrieved=is_retrieved)


def rare_names(count: int = 50) -> frozenset[str]:
    """Choose seen names by hash that are no everyday words, for decisions on the unseen style."""
    rare = [c.name for c in all_concepts() if not (c.is_common or c.is_unseen) and c.drawings]
    return frozenset(sorted(rare, key=lambda n: hashlib.sha256(n.encode()).digest())[:count])


def development_benchmarks(data: DataFolder, num_scenes: int = 150) -> list[SegmentationBenchmark]:
    """Make what decisions are made on: seen styles, and the unseen style with rarer names."""
    seen = data.source("val", styles=EMOJI_TRAIN_STYLES, names=common_names())
    style = data.source("val", styles=("fluent-3d",), names=rare_names())
    return [
        make_benchmark("val", seen, num_scenes),
        make_benchmark("val-style", style, num_scenes),
    ]
