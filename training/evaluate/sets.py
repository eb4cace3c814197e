"""The named sets that models are scored on: held-out scenes and single drawings.

What decisions are made on lies in the development sets, and only there.
"""

from collections.abc import Sequence

from training.data.concepts import all_concepts
from training.data.folder import EMOJI_TRAIN_STYLES, DataFolder, common_names, seen_names
from training.data.scenes import SceneConfig, SceneSource, compose_scene
from training.evaluate.benchmark import SegmentationBenchmark, make_benchmark, rare_names
from training.evaluate.classification import (
    ClassificationBenchmark,
    single_drawings,
    single_object_scenes,
)

UNSEEN_STYLE = "Fluent 3D (unseen style)"
_ALONE = SceneConfig(count_weights=(1.0,), min_size=0.6, max_size=0.9, common_share=1.0)


def unseen_names() -> frozenset[str]:
    """Names that no training scene shows or captions."""
    return frozenset(concept.name for concept in all_concepts() if concept.is_unseen)


def _drawn_seen_names() -> frozenset[str]:
    """Seen names that some emoji shows; furniture alone shows the others."""
    return frozenset(c.name for c in all_concepts() if c.drawings) & seen_names()


def held_out_scenes(data: DataFolder, num_scenes: int) -> list[SegmentationBenchmark]:
    """The test scenes: the unseen 3D style first, then what is reported beside it without a bar."""
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
        name = f"photo stamps of Tux Paint, {len(stamps.names)} names"
        sets.append(make_benchmark(name, stamps, num_scenes, is_retrieved=True))
    return sets


def held_out_drawings(data: DataFolder, num_scenes: int) -> list[ClassificationBenchmark]:
    """The test drawings, each alone: on a plain background, stamps also in scenes.

    Of all the seen names in the unseen style, those that development looks at are candidates only.
    """
    seen, unseen, everyday = _drawn_seen_names(), unseen_names(), common_names()
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
    sets = [
        single_drawings(
            f"{title}, one of {len(names)} {kind} names",
            data.bank(),
            styles=styles,
            shown=shown,
            names=names,
        )
        for title, styles, kind, shown, names in parts
    ]
    stamps = data.stamp_source()
    return sets if stamps is None else sets + _stamps(stamps, num_scenes)


def _stamps(source: SceneSource, num_scenes: int) -> list[ClassificationBenchmark]:
    title = "photo stamps of Tux Paint"
    kind = f"one of {len(source.names)} names"
    scenes = [compose_scene(source, index, _ALONE) for index in range(num_scenes)]
    return [
        single_drawings(
            f"{title}, {kind}",
            source.bank,
            styles=source.styles,
            shown=source.names,
            names=source.names,
        ),
        single_object_scenes(f"{title} on scenes' backgrounds, {kind}", scenes, source.names),
    ]


def development_drawings(data: DataFolder) -> list[ClassificationBenchmark]:
    """What decisions on classification are made on: the names and styles of development scenes."""
    parts: Sequence[tuple[str, tuple[str, ...], frozenset[str]]] = (
        ("val", EMOJI_TRAIN_STYLES, common_names()),
        ("val-style", ("fluent-3d",), rare_names()),
    )
    return [
        single_drawings(name, data.bank(), styles=styles, shown=names, names=names)
        for name, styles, names in parts
    ]
