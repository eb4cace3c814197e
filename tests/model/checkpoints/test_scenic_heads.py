"""Heads read from Scenic zips compute the same maps as the transformers heads."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import Tipsv2DptForDensePrediction, Tipsv2Model

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.read import read_checkpoint
from model.checkpoints.scenic import read_scenic_heads
from model.graphs import DENSE_TASKS, DenseTask, DepthActivation
from tests.model.checkpoints.official_layout import Arrays, small_model
from tests.model.checkpoints.scenic_decoder import depth_in_metres, taps
from tests.model.checkpoints.scenic_layout import (
    dense_model,
    scenic_arrays,
    write_arrays,
)

if TYPE_CHECKING:
    from tests.model.checkpoints.conftest import Release


@pytest.fixture(scope="module")
def model() -> Tipsv2Model:
    return small_model("b-like", vocab_size=8, text_layers=1)


@pytest.fixture(scope="module")
def dense(model: Tipsv2Model) -> Tipsv2DptForDensePrediction:
    return dense_model(model, depth_activation="linear")


def write_zips(
    dense: Tipsv2DptForDensePrediction, folder: Path, **others: Arrays
) -> dict[DenseTask, Path]:
    """Write the zips of all tasks; those of `others` with these arrays instead."""
    return {
        task: write_arrays(
            folder / f"tips_v2_small_{task}_dpt.zip",
            others[task] if task in others else scenic_arrays(dense, task),
        )
        for task in DENSE_TASKS
    }


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(56, 56), (28, 84)])
def test_three_zips_give_the_maps_of_the_heads(
    releases: dict[str, "Release"], tmp_path: Path, size_hw: tuple[int, int]
) -> None:
    original = dense_model(releases["b-like"].model, depth_activation="linear")
    write_zips(original, tmp_path)
    checkpoint = read_checkpoint(releases["b-like"].pair, dense=tmp_path)
    assert checkpoint.dense is not None
    assert not checkpoint.dense.training
    pixels_B3HW = torch.rand(2, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    actual, expected = checkpoint.dense(pixels_B3HW), original(pixels_B3HW)
    for name in ("predicted_depth", "normals", "segmentation_logits"):
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-5)
        assert expected[name].std() > 0.01, "a constant map would hide mistakes"


@torch.no_grad()
@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("size_hw", [(56, 84), (42, 70)])
def test_depth_is_what_the_released_decoder_computes(
    model: Tipsv2Model,
    dense: Tipsv2DptForDensePrediction,
    tmp_path: Path,
    activation: DepthActivation,
    size_hw: tuple[int, int],
) -> None:
    zips = list(write_zips(dense, tmp_path).values())
    arrays = scenic_arrays(dense, "depth")
    pixels_B3HW = torch.rand(2, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    expected, other = (
        depth_in_metres(arrays, taps(model, pixels_B3HW), activation=relu)
        for relu in (activation == "relu", activation != "relu")
    )
    found, origin = read_scenic_heads(zips, model, depth_activation=activation)
    assert origin["depth_activation"] == activation
    actual = found(pixels_B3HW).predicted_depth
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    assert (actual - other).abs().max() > 0.01, "the activation makes no difference here"


PROJECT = "decoder/dpt/project/bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays | {PROJECT: np.full_like(arrays[PROJECT], np.inf)}, "infinite val"),
        (lambda arrays: arrays | {PROJECT: np.repeat(arrays[PROJECT], 2)}, "other shapes"),
        (lambda arrays: {k: a for k, a in arrays.items() if "convs_2" not in k}, "lacks"),
        (lambda arrays: arrays | {"decoder/extra": arrays[PROJECT]}, "unknown tensors"),
        (lambda _: {"reassemble.bias": np.zeros(3, np.float32)}, "whether its kernels are mirror"),
    ],
)
def test_a_wrong_zip_is_refused(
    model: Tipsv2Model,
    dense: Tipsv2DptForDensePrediction,
    tmp_path: Path,
    change: Callable[[Arrays], Arrays],
    message: str,
) -> None:
    zips = write_zips(dense, tmp_path, normals=change(scenic_arrays(dense, "normals")))
    with pytest.raises(CheckpointError, match=message):
        read_scenic_heads(list(zips.values()), model)


def test_a_path_without_heads_is_refused(releases: dict[str, "Release"], tmp_path: Path) -> None:
    for path, message in [
        (tmp_path, "holds no dense heads"),
        (tmp_path / "nowhere", "is not a folder"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(releases["b-like"].pair, dense=path)
