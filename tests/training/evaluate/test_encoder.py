"""Encoding for evaluation, and finding a model in a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Tipsv2Tokenizer

from model.encoder import Tipsv2Encoder
from model.features import text_features, vision_features
from model.preprocess import prepare_image
from model.text import TEMPLATES
from training.data.batch import tokenize
from training.data.scenes import Scene
from training.evaluate import encoder as encoder_module
from training.evaluate.encoder import SceneEncoder, encode_images, find_model


def test_each_scene_has_its_own_features(
    encoder: Tipsv2Encoder,
    scenes: list[Scene],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoder_module, "_BATCH", 4)
    encoded = SceneEncoder(encoder, scenes)
    for scene in reversed(scenes):
        pixels_13SS = torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            alone = vision_features(encoder.model, pixels_13SS)
        tokens = {"cls1": alone.cls1_BD, "cls2": alone.cls2_BD}
        grids = {"patches": alone.patches_BND, "values": alone.values_BND}
        for kind, expected in (tokens | grids).items():
            found = encoded.feature(kind, scene)
            np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-3, atol=1e-4)


def test_images_of_another_multiple_are_scaled_to_the_native_size(encoder: Tipsv2Encoder) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    native = encoder.native_size
    found = encode_images(encoder, [image])
    pixels_13SS = torch.from_numpy(prepare_image(image, (native, native))[None])
    with torch.no_grad():
        wanted = vision_features(encoder.model, pixels_13SS).values_BND.numpy()
    np.testing.assert_allclose(found["values"], wanted, atol=1e-5)


def test_a_class_is_the_unit_mean_of_its_unit_prompts(
    encoder: Tipsv2Encoder, tokenizer: Tipsv2Tokenizer, scenes: list[Scene], names: list[str]
) -> None:
    encoded = SceneEncoder(encoder, scenes[:1])
    for templates in ("none", "tcl"):
        classes_KD = encoded.classes(names[:3], templates)
        assert np.linalg.norm(classes_KD, axis=1) == pytest.approx(1.0, abs=1e-5)
        for name, found_D in zip(names, classes_KD, strict=False):
            prompts = tokenize(tokenizer, [t.format(name) for t in TEMPLATES[templates]])
            with torch.no_grad():
                texts_PD = text_features(encoder.model, prompts.token_ids_BL, prompts.mask_BL)
            unit_PD = torch.nn.functional.normalize(texts_PD, dim=1)
            mean_D = torch.nn.functional.normalize(unit_PD.mean(0), dim=0)
            np.testing.assert_allclose(found_D, mean_D.numpy(), atol=1e-5)


def test_a_model_is_found_in_a_run_and_in_a_package(tmp_path: Path) -> None:
    for folder, model in (("run", "run/model"), ("package", "package")):
        (tmp_path / model).mkdir(parents=True)
        (tmp_path / model / "config.json").write_text("{}", encoding="utf-8")
        assert find_model(tmp_path / folder) == tmp_path / model
    with pytest.raises(FileNotFoundError, match="has no model yet: it needs a model folder"):
        find_model(tmp_path)
