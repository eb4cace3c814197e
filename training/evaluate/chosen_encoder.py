"""Encoders under test, each with features and templates chosen on development sets."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.encoder import Encoder
from training.evaluate.encoder import encode_images, encode_names
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


def choose(
    encoder: Encoder,
    scenes: Sequence[SegmentationBenchmark],
    drawings: Sequence[ClassificationBenchmark],
) -> ChosenEncoder:
    """Pick features and templates by the mean mIoU, class templates by the mean top-1.

    Args:
        encoder: In evaluation mode.
        scenes: The development scenes.
        drawings: The development drawings.
    """
    miou = {(kind, templates): 0.0 for templates in TEMPLATE_SETS for kind in FEATURES}
    for benchmark in scenes:
        features = benchmark.encode(encoder)
        for templates in TEMPLATE_SETS:
            classes_KD = encode_names(encoder, benchmark.names, templates)
            for kind in FEATURES:
                miou[kind, templates] += benchmark.count(features[kind], classes_KD).miou()
    top1 = dict.fromkeys(TEMPLATE_SETS, 0.0)
    for images in drawings:
        cls1_MD = encode_images(encoder, images.images)["cls1"]
        for templates in TEMPLATE_SETS:
            classes_KD = encode_names(encoder, images.names, templates)
            top1[templates] += images.rank(cls1_MD, classes_KD).found(1)
    features_kind, templates = max(miou, key=miou.__getitem__)
    return ChosenEncoder(
        encoder=encoder,
        features=features_kind,
        templates=templates,
        class_templates=max(top1, key=top1.__getitem__),
    )
