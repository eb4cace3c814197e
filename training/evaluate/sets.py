"""Named sets of evaluation scenes and of single drawings.

Decisions are made on the development sets only.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.encoder import Encoder
from training.data.concepts import all_concepts
from training.data.folder import EMOJI_TRAIN_STYLES, DataFolder, common_names, seen_names
from training.data.scenes import Scene, SceneConfig, SceneSource, compose_scene
from training.data.sprites import SpriteBank
from training.evaluate.encoder import encode_images, encode_names
from training.evaluate.ranking import ClassificationBenchmark, single_drawings
from training.evaluate.zero_shot_segmentation import (
    SceneCounts,
    count_scenes,
    painted_cosines,
    patch_cosines,
)

NUM_DEVELOPMENT = 150
# Two or three objects: a single one would reward labelling the whole image with one name.
MULTI_OBJECT = SceneConfig(count_weights=(0.0, 0.5, 0.5), twin_share=0.0, common_share=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationBenchmark:
    """Scenes of one size and the candidate names; captions are searched if it is retrieved."""

    name: str
    scenes: Sequence[Scene]
    names: Sequence[str]
    is_retrieved: bool = False

    @property
    def masks(self) -> list[NDArray[np.int32]]:
        """Of each scene."""
        return [scene.mask_SS for scene in self.scenes]

    def encode(self, encoder: Encoder) -> dict[str, NDArray[np.float32]]:
        """Features of the scenes; see `encode_images`."""
        return encode_images(encoder, [scene.pixels_SS3 for scene in self.scenes])

    def count(self, features: NDArray[np.float32], classes_KD: NDArray[np.float32]) -> SceneCounts:
        """Count a segmentation by patches [S, N, D], or by painted global embeddings [S, D]."""
        cosines = patch_cosines if features.ndim == 3 else painted_cosines
        return count_scenes(self.masks, self.names, cosines(features, classes_KD))

    def quick_scores(self, encoder: Encoder) -> dict[str, float]:
        """Compute mIoU of final patches, value path and painted CLS1, without intervals."""
        features = self.encode(encoder)
        classes_KD = encode_names(encoder, self.names, "none")
        row = {}
        for kind in ("patches", "values"):
            counts = self.count(features[kind], classes_KD)
            row[f"{self.name}/{kind}"] = round(counts.overall(SceneCounts.miou), 2)
            row[f"{self.name}/{kind}_which"] = round(counts.overall(SceneCounts.which), 2)
        painted = self.count(features["cls1"], classes_KD)
        row[f"{self.name}/painted"] = round(painted.overall(SceneCounts.miou), 2)
        return row


def make_benchmark(
    name: str, source: SceneSource, num_scenes: int, *, is_retrieved: bool = False
) -> SegmentationBenchmark:
    """Compose a benchmark's scenes; its candidates are the source's names."""
    scenes = [compose_scene(source, index, MULTI_OBJECT) for index in range(num_scenes)]
    names = sorted(source.names)
    return SegmentationBenchmark(name=name, scenes=scenes, names=names, is_retrieved=is_retrieved)


def rare_names(count: int = 50) -> frozenset[str]:
    """Seen names, chosen by hash, but no everyday words, for decisions on the unseen style."""
    rare = [c.name for c in all_concepts() if not (c.is_common or c.is_unseen) and c.drawings]
    return frozenset(sorted(rare, key=lambda n: hashlib.sha256(n.encode()).digest())[:count])


def development_benchmarks(
    data: DataFolder, num_scenes: int = NUM_DEVELOPMENT
) -> list[SegmentationBenchmark]:
    """The development scenes: seen styles, and the unseen style with rarer names."""
    seen = data.source("val", styles=EMOJI_TRAIN_STYLES, names=common_names())
    style = data.source("val", styles=("fluent-3d",), names=rare_names())
    return [make_benchmark("val", seen, num_scenes), make_benchmark("val-style", style, num_scenes)]


UNSEEN_STYLE = "Fluent 3D (unseen style)"
_ALONE = SceneConfig(count_weights=(1.0,), min_size=0.6, max_size=0.9, common_share=1.0)


def unseen_names() -> frozenset[str]:
    """Names that occur in no training scene or caption."""
    return frozenset(concept.name for concept in all_concepts() if concept.is_unseen)


def held_out_scenes(data: DataFolder, num_scenes: int) -> list[SegmentationBenchmark]:
    """The test scenes: the unseen 3D style first, then further sets."""
    unseen = unseen_names()
    parts = [
        (f"{UNSEEN_STYLE}, 50 everyday names", ("fluent-3d",), common_names(), True),
        (f"{UNSEEN_STYLE}, 50 rarer names", ("fluent-3d",), rare_names(), False),
        ("seen styles, 50 everyday names", EMOJI_TRAIN_STYLES, common_names(), True),
        ("OpenMoji (unseen line art), 50 everyday names", ("openmoji",), common_names(), False),
        (f"unseen concepts in seen styles, {len(unseen)} names", EMOJI_TRAIN_STYLES, unseen, False),
    ]
    sets = [
        make_benchmark(
            name,
            data.source("test", styles=styles, names=names),
            num_scenes,
            is_retrieved=is_retrieved,
        )
        for name, styles, names, is_retrieved in parts
    ]
    stamps = data.stamp_source()
    if stamps is not None:
        # Scenes show everyday words only.
        num_shown = stamps.num_concepts(MULTI_OBJECT.common_share)
        name = f"photo stamps of Tux Paint, {len(stamps.names)} names, {num_shown} of them shown"
        sets.append(make_benchmark(name, stamps, num_scenes, is_retrieved=True))
    return sets


def held_out_drawings(data: DataFolder, num_scenes: int) -> list[ClassificationBenchmark]:
    """The test drawings, each alone: on a plain background, stamps also in scenes.

    Names that development uses in the unseen style are candidates there, but not shown.
    """
    unseen, everyday = unseen_names(), common_names()
    # Other names have only furniture renders.
    seen = frozenset(c.name for c in all_concepts() if c.drawings) & seen_names()
    unseen_style = (UNSEEN_STYLE, ("fluent-3d",))
    seen_styles = ("seen styles", EMOJI_TRAIN_STYLES)
    parts = [
        (*unseen_style, "everyday", everyday, everyday),
        (*unseen_style, "seen", seen - rare_names(), seen),
        (*seen_styles, "everyday", everyday, everyday),
        ("OpenMoji (unseen line art)", ("openmoji",), "everyday", everyday, everyday),
        ("unseen concepts in seen styles", EMOJI_TRAIN_STYLES, "unseen", unseen, unseen),
        ("unseen concepts in Fluent 3D", ("fluent-3d",), "unseen", unseen, unseen),
    ]
    named = [
        (f"{title}, one of {len(names)} {kind} names", styles, shown, names)
        for title, styles, kind, shown, names in parts
    ]
    sets = _single(data.bank(), named)
    stamps = data.stamp_source()
    return sets if stamps is None else sets + _stamps(stamps, num_scenes)


def _stamps(source: SceneSource, num_scenes: int) -> list[ClassificationBenchmark]:
    title, names = "photo stamps of Tux Paint", source.names
    kind = f"one of {len(names)} names"
    scenes = [compose_scene(source, index, _ALONE) for index in range(num_scenes)]
    return [
        *_single(source.bank, [(f"{title}, {kind}", source.styles, names, names)]),
        ClassificationBenchmark(
            name=f"{title} on scenes' backgrounds, {kind}",
            images=[scene.pixels_SS3 for scene in scenes],
            labels=[scene.captions.names[0] for scene in scenes],
            names=sorted(names),
        ),
    ]


def development_drawings(data: DataFolder) -> list[ClassificationBenchmark]:
    """The development drawings: names and styles of the development scenes."""
    common, rare = common_names(), rare_names()
    sets = [
        ("val", EMOJI_TRAIN_STYLES, common, common),
        ("val-style", ("fluent-3d",), rare, rare),
    ]
    return _single(data.bank(), sets)


def _single(
    bank: SpriteBank, sets: Iterable[tuple[str, Sequence[str], frozenset[str], frozenset[str]]]
) -> list[ClassificationBenchmark]:
    """Sets of single drawings: name, styles, shown names and candidates of each."""
    return [
        single_drawings(name, bank, styles=styles, shown=shown, names=names)
        for name, styles, shown, names in sets
    ]
