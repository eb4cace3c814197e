"""Measures one finished run on scenes of two or three objects, and keeps the counts by scene.

Kept are counts, not scores, so that any pair of runs can be compared on the same scenes later.
Masks measure here and nowhere else.

Shapes: S scenes, K candidate names, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.segmentation import l2_normalize
from training.data.folder import EMOJI_TRAIN_STYLES, DataFolder, common_names
from training.data.scenes import compose_scene
from training.evaluate.benchmark import MULTI_OBJECT, PATCH, SegmentationBenchmark
from training.evaluate.encoder import SceneEncoder, encode_texts
from training.evaluate.ranking import rank
from training.evaluate.zero_shot_segmentation import (
    SceneCounts,
    count_scenes,
    largest_object_scorer,
    painted_scorer,
    patch_scorer,
)

Measures = Mapping[str, NDArray[np.float64]]

# Fixed beforehand and not chosen on any scene: the nine prompts of TIPSv2's own evaluation.
TEMPLATES = "tcl"
KINDS = ("patches", "values")
PAINTED = "painted CLS1"
LARGEST = "largest object"
RETRIEVAL = (
    "short text to image",
    "short image to text",
    "long text to image",
    "long image to text",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmarks:
    """The scenes that every run is measured on.

    Attributes:
        val: Seen styles; what is chosen (patches or values) is chosen here.
        seen: Test scenes in the styles that were trained on.
        unseen: Test scenes in Fluent 3D, a style that was not.
    """

    val: SegmentationBenchmark
    seen: SegmentationBenchmark
    unseen: SegmentationBenchmark

    def all(self) -> tuple[SegmentationBenchmark, ...]:
        """List them; each knows its name."""
        return self.val, self.seen, self.unseen


def make_benchmarks(data: DataFolder, *, size: int, num_scenes: int) -> Benchmarks:
    """Compose the measuring scenes of the 50 everyday names, two or three objects each."""
    scenes = replace(MULTI_OBJECT, size=size)

    def benchmark(name: str, styles: tuple[str, ...]) -> SegmentationBenchmark:
        is_val = name == "val"
        split = data.source("val" if is_val else "test", styles=styles, names=common_names())
        count = max(1, num_scenes // 2) if is_val else num_scenes
        composed = [compose_scene(split, index, scenes) for index in range(count)]
        return SegmentationBenchmark(name=name, scenes=composed, names=sorted(split.names))

    return Benchmarks(
        val=benchmark("val", EMOJI_TRAIN_STYLES),
        seen=benchmark("seen", EMOJI_TRAIN_STYLES),
        unseen=benchmark("unseen", ("fluent-3d",)),
    )


def measure(
    model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, benchmarks: Benchmarks
) -> dict[str, NDArray[np.float64]]:
    """Measure a model in evaluation mode.

    Returns:
        Arrays by "SET/ROW/FIELD" for the fields of SceneCounts, and by "SET/retrieval/DIRECTION"
        whether the nearest neighbour is right, float64 [S] of 0 and 1.
    """
    arrays: dict[str, NDArray[np.float64]] = {}
    for benchmark in benchmarks.all():
        encoder = SceneEncoder(model, tokenizer, benchmark.scenes)
        for row, counts in _segmentation(benchmark, encoder).items():
            for item in fields(SceneCounts):
                arrays[f"{benchmark.name}/{row}/{item.name}"] = getattr(counts, item.name)
        for direction, hit_S in _retrieval(benchmark, encoder, model, tokenizer).items():
            arrays[f"{benchmark.name}/retrieval/{direction}"] = hit_S
    return arrays


def counts_of(measures: Measures, scenes: str, row: str) -> SceneCounts:
    """Take one row's counts out of what `measure` returned; "chance" is a blind guess's."""
    if row == "chance":
        return counts_of(measures, scenes, LARGEST).guessed()
    return SceneCounts(
        **{item.name: measures[f"{scenes}/{row}/{item.name}"] for item in fields(SceneCounts)}
    )


def _segmentation(
    benchmark: SegmentationBenchmark, encoder: SceneEncoder
) -> dict[str, SceneCounts]:
    classes_KD = encoder.classes(benchmark.names, TEMPLATES)
    scorers = {
        kind: patch_scorer(partial(encoder.feature, kind), classes_KD, PATCH) for kind in KINDS
    }
    scorers[PAINTED] = painted_scorer(partial(encoder.feature, "cls1"), classes_KD)
    scorers[LARGEST] = largest_object_scorer(benchmark.names)
    return {
        row: count_scenes(benchmark.scenes, benchmark.names, scorer)
        for row, scorer in scorers.items()
    }


def _retrieval(
    benchmark: SegmentationBenchmark,
    encoder: SceneEncoder,
    model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
) -> dict[str, NDArray[np.float64]]:
    """Recall at 1 among all scenes: short captions by CLS1, whole-scene captions by CLS2."""
    hits: dict[str, NDArray[np.float64]] = {}
    captions = [scene.captions for scene in benchmark.scenes]
    streams = {
        "short": ("cls1", [caption.short for caption in captions]),
        "long": ("cls2", [caption.scene for caption in captions]),
    }
    for name, (token, texts) in streams.items():
        images_SD = l2_normalize(
            np.stack([encoder.feature(token, scene) for scene in benchmark.scenes])
        )
        texts_SD = l2_normalize(encode_texts(model, tokenizer, texts))
        right_SS = np.asarray(texts)[:, None] == np.asarray(texts)
        hits[f"{name} text to image"] = _found(texts_SD @ images_SD.T, right_SS)
        hits[f"{name} image to text"] = _found(images_SD @ texts_SD.T, right_SS)
    return hits


def _found(scores_SS: NDArray[np.float32], right_SS: NDArray[np.bool_]) -> NDArray[np.float64]:
    hit_S: NDArray[np.float64] = (rank(scores_SS, right_SS).rank_Q == 0).astype(np.float64)
    return hit_S


def save_measures(measures: Measures, path: Path) -> None:
    """Write what `measure` returned; a crash leaves no half file."""
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, allow_pickle=False, **measures)
    temporary.replace(path)


def load_measures(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read what `save_measures` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
