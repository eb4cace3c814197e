"""Encoding for evaluation, and the choices that are made on development sets."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Tipsv2Tokenizer

from model.encoder import Tipsv2Encoder
from model.features import text_features, vision_features
from model.preprocess import prepare_image
from model.text import TEMPLATES
from training.data.batch import tokenize
from training.data.scenes import Scene, SceneSource
from training.data.sprites import SpriteBank
from training.evaluate import encoder as encoder_module
from training.evaluate.encoder import encode_images, encode_names
from training.evaluate.ranking import single_drawings
from training.evaluate.report import choose
from training.evaluate.sets import SegmentationBenchmark
from training.evaluate.zero_shot_segmentation import SceneCounts


def test_a_batch_has_the_features_of_its_images(
    encoder: Tipsv2Encoder, scenes: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "_BATCH", 4)
    pixels = [scene.pixels_SS3 for scene in scenes]
    # Sides that are no multiple of a patch are scaled to the native size.
    odd = [np.ascontiguousarray(image[:40, :40]) for image in pixels]
    for images, side in ((pixels, 42), (odd, encoder.native_size)):
        found = encode_images(encoder, images)
        for row, image in enumerate(images):
            pixels_13SS = torch.from_numpy(prepare_image(image, (side, side))[None])
            with torch.no_grad():
                alone = vision_features(encoder.model, pixels_13SS)
            for kind, value in (
                ("cls1", alone.cls1_BD),
                ("cls2", alone.cls2_BD),
                ("patches", alone.patches_BND),
                ("values", alone.values_BND),
            ):
                np.testing.assert_allclose(found[kind][row], value[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("templates", ["none", "tcl"])
def test_a_class_is_the_unit_mean_of_its_unit_prompts(
    templates: str, encoder: Tipsv2Encoder, tokenizer: Tipsv2Tokenizer, names: list[str]
) -> None:
    for name, found_D in zip(names, encode_names(encoder, names[:3], templates), strict=False):
        prompts = tokenize(tokenizer, [t.format(name) for t in TEMPLATES[templates]])
        with torch.no_grad():
            texts_PD = text_features(encoder.model, prompts.token_ids_BL, prompts.mask_BL)
        mean_D = F.normalize(F.normalize(texts_PD, dim=1).mean(0), dim=0)
        np.testing.assert_allclose(found_D, mean_D.numpy(), atol=1e-5)


def test_the_choices_with_the_best_mean_scores_are_taken(
    encoder: Tipsv2Encoder,
    scenes: list[Scene],
    names: list[str],
    sprite_bank: SpriteBank,
    source: SceneSource,
) -> None:
    halves = [
        SegmentationBenchmark(name="", scenes=part, names=names)
        for part in (scenes[:5], scenes[5:])
    ]
    drawings = [
        single_drawings("", sprite_bank, styles=(style,), shown=source.names, names=source.names)
        for style in ("noto", "fluent-3d")
    ]
    chosen = choose(encoder, halves, drawings)
    miou, top = {}, {}
    for templates in ("none", "tcl"):
        classes_KD = encode_names(encoder, names, templates)
        for kind in ("patches", "values"):
            counts = [half.count(half.encode(encoder)[kind], classes_KD) for half in halves]
            miou[kind, templates] = sum(one.overall(SceneCounts.miou) for one in counts)
        top[templates] = sum(images.classify(encoder, templates).found(1) for images in drawings)
    assert miou[chosen.features, chosen.templates] == max(miou.values()) > min(miou.values())
    assert top[chosen.class_templates] == max(top.values())
