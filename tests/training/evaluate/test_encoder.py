"""Encoding for evaluation, and finding a model in a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.features import text_features, vision_features
from model.text import TEMPLATES
from training.data.batch import tokenize
from training.data.scenes import Scene
from training.evaluate import encoder as encoder_module
from training.evaluate.encoder import SceneEncoder, find_model


def test_each_scene_has_its_own_features(
    encoder_model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    scenes: list[Scene],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoder_module, "_BATCH", 4)
    encoder = SceneEncoder(encoder_model, tokenizer, scenes)
    for scene in reversed(scenes):
        pixels_13SS = torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            alone = vision_features(encoder_model, pixels_13SS)
        tokens = {"cls1": alone.cls1_BD, "cls2": alone.cls2_BD}
        grids = {"patches": alone.patches_BND, "values": alone.values_BND}
        for kind, expected in (tokens | grids).items():
            found = encoder.feature(kind, scene)
            np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-3, atol=1e-4)


def test_a_class_is_the_unit_mean_of_its_unit_prompts(
    encoder_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, scenes: list[Scene], names: list[str]
) -> None:
    encoder = SceneEncoder(encoder_model, tokenizer, scenes[:1])
    for templates in ("none", "tcl"):
        classes_KD = encoder.classes(names[:3], templates)
        assert np.linalg.norm(classes_KD, axis=1) == pytest.approx(1.0, abs=1e-5)
        for name, found_D in zip(names, classes_KD, strict=False):
            prompts = tokenize(tokenizer, [t.format(name) for t in TEMPLATES[templates]])
            with torch.no_grad():
                texts_PD = text_features(encoder_model, prompts.token_ids_BL, prompts.mask_BL)
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
