"""Models under test, each with features and templates chosen on development sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.evaluate.encoder import SceneEncoder, encode_images, encode_names
from training.evaluate.ranking import ClassificationBenchmark
from training.evaluate.sets import SegmentationBenchmark

FEATURES = ("patches", "values")
TEMPLATE_SETS = ("none", "tcl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A model under test and the choices made for it.

    Attributes:
        model: In evaluation mode.
        tokenizer: The model's tokenizer.
        features: Patch features for segmentation, "patches" or "values".
        templates: Prompts of classes in segmentation.
        class_templates: Prompts of classes in classification.
    """

    model: Tipsv2Model
    tokenizer: Tipsv2Tokenizer
    features: str
    templates: str
    class_templates: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Development:
    """The development sets."""

    scenes: Sequence[SegmentationBenchmark]
    drawings: Sequence[ClassificationBenchmark]


def choose(model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, development: Development) -> Encoder:
    """Pick features and templates by the mean mIoU, class templates by the mean top-1."""
    features, templates = _choose_segmentation(model, tokenizer, development.scenes)
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        features=features,
        templates=templates,
        class_templates=_choose_class_templates(model, tokenizer, development.drawings),
    )


def _choose_segmentation(
    model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, benchmarks: Sequence[SegmentationBenchmark]
) -> tuple[str, str]:
    scored = {(kind, templates): 0.0 for templates in TEMPLATE_SETS for kind in FEATURES}
    for benchmark in benchmarks:
        scenes = SceneEncoder(model, tokenizer, benchmark.scenes)
        for templates in TEMPLATE_SETS:
            classes_KD = scenes.classes(benchmark.names, templates)
            for kind in FEATURES:
                counts = benchmark.patch_counts(scenes, classes_KD, kind)
                scored[kind, templates] += counts.miou()
    return max(scored, key=lambda key: scored[key])


def _choose_class_templates(
    model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, benchmarks: Sequence[ClassificationBenchmark]
) -> str:
    scored = dict.fromkeys(TEMPLATE_SETS, 0.0)
    for benchmark in benchmarks:
        cls1_MD = encode_images(model, benchmark.images)["cls1"]
        for templates in TEMPLATE_SETS:
            classes_KD = encode_names(model, tokenizer, benchmark.names, templates)
            scored[templates] += benchmark.rank(cls1_MD, classes_KD).found(1)
    return max(scored, key=lambda key: scored[key])


def load_encoder(folder: Path, development: Development, *, is_random: bool = False) -> Encoder:
    """Load a finished model, or random weights of the same shape, and choose its settings."""
    tokenizer = Tipsv2Tokenizer.from_pretrained(folder)
    model = Tipsv2Model.from_pretrained(folder)
    if is_random:
        torch.manual_seed(0)
        model = Tipsv2Model(model.config)
    # On a CPU, plain matrix products are faster for so few tokens than the fused kernel.
    model.set_attn_implementation("eager")
    return choose(model.eval(), tokenizer, development)
