"""The official pair is read whole; a missing, extra, swapped or damaged part is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import Tipsv2Model

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.official import pair_config, read_pair
from model.checkpoints.read import read_checkpoint
from model.variants import VARIANTS, tower_configs, variant_name
from tests.model.checkpoints.official_layout import (
    Arrays,
    small_model,
    text_arrays,
    text_tensors,
    vision_arrays,
    vision_tensors,
    write_npz,
    write_pair,
)

if TYPE_CHECKING:
    from tests.model.checkpoints.conftest import Release

VISION, TEXT = "tips_v2_oss_small_vision.npz", "tips_v2_oss_small_text.npz"
NO_BLOCKS: Arrays = {
    "cls_token": np.zeros((1, 1, 128), np.float32),
    "patch_embed.proj.weight": np.zeros((128, 3, 14, 14), np.float32),
}


def rename(arrays: Arrays, name: str) -> Arrays:
    return {key + "_" if key == name else key: value for key, value in arrays.items()}


def shorten(arrays: Arrays, name: str) -> Arrays:
    shorter = arrays[name][..., :-1] if arrays[name].ndim else np.empty(0, np.float32)
    return arrays | {name: shorter}


@pytest.mark.slow
@pytest.mark.parametrize("change", [rename, shorten])
def test_any_one_array_renamed_or_reshaped_is_refused(
    change: Callable[[Arrays, str], Arrays], tmp_path: Path
) -> None:
    model = small_model("g-like", vocab_size=8, layers=1, text_layers=1)
    towers = {VISION: vision_arrays(model), TEXT: text_arrays(model)}
    for file, arrays in towers.items():
        write_pair(model, tmp_path)
        for name in arrays:
            write_npz(tmp_path / file, change(arrays, name))
            with pytest.raises(CheckpointError, match=r"\.npz|released"):
                read_pair(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda pair: shutil.copy(pair / VISION, pair / "other_vision.npz"),
            r"one file \*_vision.npz and holds 'other_vision",
        ),
        (lambda pair: (pair / TEXT).unlink(), r"one file \*_text.npz and holds none"),
        (lambda pair: write_npz(pair / VISION, {"params/cls": np.zeros(8, np.float32)}), "Scenic"),
        (lambda pair: write_npz(pair / VISION, NO_BLOCKS), r"official layout .*no array blocks\.0"),
    ],
)
def test_a_folder_that_is_not_one_pair_is_refused(
    pair: Path, change: Callable[[Path], object], message: str
) -> None:
    change(pair)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(pair)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.weight", np.ones(3), "unknown tensors: .*head.weight"),
        (
            "ln_final.bias",
            np.full(128, np.nan),
            "NaN or infinite values in 'text_encoder.ln_final.bias'",
        ),
        ("temperature", np.zeros(()), "temperature"),
        ("temperature", np.array(np.inf), "temperature"),
        ("temperature", np.array(-0.01), "temperature"),
        ("temperature_contrastive", np.ones(()), "unknown tensors: .*temperature"),
    ],
)
def test_a_wrong_text_array_is_refused(
    pair: Path, releases: dict[str, "Release"], name: str, value: "np.ndarray", message: str
) -> None:
    arrays = text_arrays(releases["b-like"].model)
    write_npz(pair / TEXT, arrays | {name: value.astype(np.float32)})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(pair)


def test_vision_arrays_are_named_as_in_the_file(pair: Path, releases: dict[str, "Release"]) -> None:
    arrays = vision_arrays(releases["b-like"].model)
    name = "blocks.1.attn.qkv.weight"
    write_npz(pair / VISION, {key: value for key, value in arrays.items() if key != name})
    with pytest.raises(CheckpointError, match=rf"lacks 'vision_encoder\.{name}'; it is not"):
        read_checkpoint(pair)
    name = "norm.weight"
    write_npz(pair / VISION, shorten(arrays, name))
    with pytest.raises(CheckpointError, match=rf"of other shapes .* 'vision_encoder\.{name}'; it"):
        read_checkpoint(pair)


def test_a_file_named_after_another_size_is_refused(pair: Path) -> None:
    for file in (VISION, TEXT):
        (pair / file).rename(pair / file.replace("small", "g14"))
    with pytest.raises(
        CheckpointError, match=r"_g14_vision\.npz is named as g14 and holds a model"
    ):
        read_checkpoint(pair)


def test_absent_gammas_are_ones(pair: Path, releases: dict[str, "Release"]) -> None:
    arrays = vision_arrays(releases["b-like"].model)
    kept = {name: value for name, value in arrays.items() if not name.endswith(".gamma")}
    write_npz(pair / VISION, kept)
    checkpoint = read_checkpoint(pair)
    for block in checkpoint.model.vision_model.encoder.layer:
        assert torch.equal(block.layer_scale1.lambda1, torch.ones(128))
        assert torch.equal(block.layer_scale2.lambda1, torch.ones(128))
    assert checkpoint.origin["layer_scale"] == "absent, so ones"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_known_size_is_recognised_from_shapes_alone(name: str) -> None:
    with torch.device("meta"):
        model = Tipsv2Model(VARIANTS[name].build())
    vision, text = vision_tensors(model), text_tensors(model)
    config = pair_config(Path("x"), vision, text, temperature=0.07)
    assert variant_name(config) == name
    expected = tower_configs(VARIANTS[name].build())
    for ours, theirs in zip(tower_configs(config), expected, strict=True):
        assert ours.to_dict() == theirs.to_dict()
    text["token_embedding.weight"] = text["token_embedding.weight"][:, :-64]
    with pytest.raises(CheckpointError, match=r"of width \d+ and \d+ are of two models"):
        pair_config(Path("x"), vision, text, temperature=0.07)
