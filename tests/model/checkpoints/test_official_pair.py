"""The official pair: whatever is missing, left over, swapped or damaged in it is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.official import read_pair
from model.checkpoints.read import read_checkpoint
from tests.model.checkpoints.official_layout import (
    Arrays,
    small_model,
    text_arrays,
    vision_arrays,
    write_npz,
    write_pair,
)

if TYPE_CHECKING:
    from tests.model.checkpoints.conftest import Release

VISION, TEXT = "tips_v2_oss_small_vision.npz", "tips_v2_oss_small_text.npz"


def drop(arrays: Arrays, name: str) -> Arrays:
    return {key: value for key, value in arrays.items() if key != name}


def rename(arrays: Arrays, name: str) -> Arrays:
    return {key + "_" if key == name else key: value for key, value in arrays.items()}


def add_axis(arrays: Arrays, name: str) -> Arrays:
    return arrays | {name: arrays[name][None]}


def shorten(arrays: Arrays, name: str) -> Arrays:
    shorter = arrays[name][..., :-1] if arrays[name].ndim else np.empty(0, np.float32)
    return arrays | {name: shorter}


CHANGES = [drop, rename, add_axis, shorten]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("like", ["b-like", "g-like"])
def test_any_one_array_dropped_renamed_or_reshaped_is_refused(
    like: str, change: Callable[[Arrays, str], Arrays], tmp_path: Path
) -> None:
    model = small_model(like, vocab_size=8, layers=1, text_layers=1)
    towers = {VISION: vision_arrays(model), TEXT: text_arrays(model)}
    for file, arrays in towers.items():
        write_pair(model, tmp_path, name="tips_v2_oss_small")
        for name in arrays:
            if change is add_axis and name == "temperature":
                continue  # one number either way
            write_npz(tmp_path / file, change(arrays, name))
            with pytest.raises(CheckpointError, match=r"\.npz"):
                read_pair(tmp_path)


@pytest.mark.parametrize("file", [VISION, TEXT])
def test_an_array_too_many_is_refused(
    pair: Path, releases: dict[str, "Release"], file: str
) -> None:
    model = releases["b-like"].model
    arrays = vision_arrays(model) if file == VISION else text_arrays(model)
    write_npz(pair / file, arrays | {"head.weight": np.ones(3, np.float32)})
    with pytest.raises(
        CheckpointError, match=f"{file} has 'head.weight' that the model does not have"
    ):
        read_checkpoint(pair)


@pytest.mark.parametrize(
    ("file", "name"), [(VISION, "blocks.3.mlp.fc2.weight"), (TEXT, "ln_final.bias")]
)
def test_a_value_that_is_no_number_is_refused(
    pair: Path, releases: dict[str, "Release"], file: str, name: str
) -> None:
    model = releases["b-like"].model
    arrays = vision_arrays(model) if file == VISION else text_arrays(model)
    arrays[name].flat[3] = np.nan
    write_npz(pair / file, arrays)
    with pytest.raises(CheckpointError, match=f"{file} has NaN or infinite values in '{name}'"):
        read_checkpoint(pair)


def test_towers_of_two_models_are_refused(pair: Path, releases: dict[str, "Release"]) -> None:
    write_npz(pair / TEXT, text_arrays(releases["so-like"].model))
    with pytest.raises(CheckpointError, match=r"do not fit together; put the two files"):
        read_checkpoint(pair)


def test_released_towers_of_two_sizes_are_told_by_name(tmp_path: Path) -> None:
    write_npz(tmp_path / "x_vision.npz", {"cls_token": np.zeros((1, 1, 768), np.float32)})
    rows = np.zeros((3, 1024), np.float32)
    write_npz(
        tmp_path / "x_text.npz",
        {"token_embedding.weight": rows, "temperature": np.full((), 0.01, np.float32)},
    )
    with pytest.raises(CheckpointError, match=r"tower of b14 \(width 768\) .* tower of l14"):
        read_pair(tmp_path)


@pytest.mark.parametrize("called", ["tips_v2_oss_b14", "tips_v2_so14", "tips_v2_so400m14"])
def test_a_file_called_otherwise_than_it_is_is_refused(pair: Path, called: str) -> None:
    for suffix in ("vision", "text"):
        (pair / f"tips_v2_oss_small_{suffix}.npz").rename(pair / f"{called}_{suffix}.npz")
    with pytest.raises(CheckpointError, match=r"is called (b14|so400m14) and holds w128d4"):
        read_checkpoint(pair)


def test_a_second_pair_is_refused(pair: Path) -> None:
    shutil.copy(pair / VISION, pair / "other_vision.npz")
    with pytest.raises(CheckpointError, match=r"one file \*_vision.npz and holds 'other_vision"):
        read_checkpoint(pair)


def test_half_a_pair_is_refused(pair: Path) -> None:
    (pair / TEXT).unlink()
    with pytest.raises(CheckpointError, match=r"one file \*_text.npz and holds none"):
        read_checkpoint(pair)


def test_the_scenic_release_is_refused(pair: Path) -> None:
    write_npz(pair / VISION, {"params/encoder/cls": np.zeros((1, 2, 8), np.float32)})
    with pytest.raises(CheckpointError, match=r"Scenic .* use the file .* pytorch folder"):
        read_checkpoint(pair)


@pytest.mark.parametrize("temperature", [0.0, -0.01, float("nan"), float("inf")])
def test_an_impossible_temperature_is_refused(
    pair: Path, releases: dict[str, "Release"], temperature: float
) -> None:
    arrays = text_arrays(releases["b-like"].model)
    write_npz(pair / TEXT, arrays | {"temperature": np.full((), temperature, np.float32)})
    with pytest.raises(CheckpointError, match=r"temperature"):
        read_checkpoint(pair)


def test_a_temperature_with_an_axis_is_carried(pair: Path, releases: dict[str, "Release"]) -> None:
    arrays = text_arrays(releases["b-like"].model)
    write_npz(pair / TEXT, arrays | {"temperature": np.full(1, 0.25, np.float32)})
    temperature = read_checkpoint(pair).model.temperature
    assert temperature.shape == ()
    assert temperature.item() == 0.25


def test_absent_gammas_are_ones(pair: Path, releases: dict[str, "Release"]) -> None:
    arrays = vision_arrays(releases["b-like"].model)
    kept = {name: value for name, value in arrays.items() if not name.endswith(".gamma")}
    write_npz(pair / VISION, kept)
    checkpoint = read_checkpoint(pair)
    for block in checkpoint.model.vision_model.encoder.layer:
        assert torch.equal(block.layer_scale1.lambda1, torch.ones(128))
        assert torch.equal(block.layer_scale2.lambda1, torch.ones(128))
    assert checkpoint.origin["layer_scale"] == "absent, so ones"


def test_a_width_that_tells_no_heads_is_refused(tmp_path: Path) -> None:
    for file, name, shape in [
        ("x_vision.npz", "cls_token", (1, 1, 100)),
        ("x_text.npz", "token_embedding.weight", (3, 100)),
    ]:
        arrays = {name: np.zeros(shape, np.float32)}
        write_npz(tmp_path / file, arrays | {"temperature": np.full((), 0.1, np.float32)})
    with pytest.raises(CheckpointError, match=r"do not say how many attention heads"):
        read_pair(tmp_path)
