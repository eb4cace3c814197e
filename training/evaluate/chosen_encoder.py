"""Encoders under test, each with features and templates chosen on development sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model.encoder import Encoder
from training.evaluate.encoder import (
    SceneEncoder,
    draw_weights,
    encode_images,
    encode_names,
    load_for_evaluation,
)
from training.evaluate.ranking import ClassificationBenchmark
from training.evaluate.sets import SegmentationBenchmark

FEATURES = ("patches", "values")
TEMPLATE_SETS = ("none", "tcl")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenEncoder:
    """An encoder under test and the choices made for it.

    Attributes:
        encoder: In evaluation mode.
        features: Patch features for segmentation, "patches" or "values".
        templates: Prompts of classes in segmentation.
        class_templates: Prompts of classes in classification.
    """

    encoder: Encoder
    features: str
    templates: str
    class_templates: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Development:
    """The development sets."""

    scenes: Sequence[SegmentationBenchmark]
    drawings: Sequence[ClassificationBenchmark]


def choose(encoder: Encoder, development: Development) -> ChosenEncoder:
    """Pick features and templates by the mean mIoU, class templates by the mean top-1."""
    features, templates = _choose_segmentation(encoder, development.scenes)
    return ChosenEncoder(
        encoder=encoder,
        features=features,
        templates=templates,
        class_templates=_choose_class_templates(encoder, development.drawings),
    )


def _choose_segmentation(
    encoder: Encoder, benchmarks: Sequence[SegmentationBenchmark]
) -> tuple[str, str]:
    scored = {(kind, templates): 0.0 for templates in TEMPLATE_SETS for kind in FEATURES}
    for benchmark in benchmarks:
        scenes = SceneEncoder(encoder, benchmark.scenes)
        for templates in TEMPLATE_SETS:
            classes_KD = scenes.classes(benchmark.names, templates)
            for kind in FEATURES:
                counts = benchmark.patch_counts(scenes, classes_KD, kind)
                scored[kind, templates] += counts.miou()
    return max(scored, key=lambda key: scored[key])


def _choose_class_templates(encoder: Encoder, benchmarks: Sequence[ClassificationBenchmark]) -> str:
    scored = dict.fromkeys(TEMPLATE_SETS, 0.0)
    for benchmark in benchmarks:
        cls1_MD = encode_images(encoder, benchmark.images)["cls1"]
        for templates in TEMPLATE_SETS:
            classes_KD = encode_names(encoder, benchmark.names, templates)
            scored[templates] += benchmark.rank(cls1_MD, classes_KD).found(1)
    return max(scored, key=lambda key: scored[key])


def load_chosen(
    folder: Path, development: Development, *, is_random: bool = False
) -> ChosenEncoder:
    """Load a finished encoder, or random weights of the same shape, and choose its settings."""
    encoder = load_for_evaluation(folder)
    if is_random:
        torch.manual_seed(0)
        draw_weights(encoder)
    return choose(encoder, development)
