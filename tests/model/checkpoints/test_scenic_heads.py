"""Heads read from Scenic zips compute the same maps as the transformers heads."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import Tipsv2DptForDensePrediction, Tipsv2Model

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.read import read_checkpoint
from model.checkpoints.scenic import read_scenic_heads, to_torch
from model.graphs import DENSE_TASKS, DenseTask, DepthActivation
from tests.model.checkpoints.official_layout import Arrays, small_model
from tests.model.checkpoints.scenic_decoder import depth_in_metres, taps
from tests.model.checkpoints.scenic_layout import (
    LINEAR,
    dense_model,
    scenic_arrays,
    write_arrays,
    write_scenic,
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


def flax_conv_transpose(x_HWi: NDArray[Any], kernel_HWio: NDArray[Any]) -> NDArray[Any]:
    """Flax's ConvTranspose with stride = kernel and padding = kernel - 1, by its definition.

    The input is spread out with zeros between, padded, and correlated with the kernel as it is.
    """
    size = kernel_HWio.shape[0]
    rows, columns, _ = x_HWi.shape
    spread = np.zeros(((rows - 1) * size + 1, (columns - 1) * size + 1, x_HWi.shape[2]))
    spread[::size, ::size] = x_HWi
    padded = np.pad(spread, ((size - 1, size - 1), (size - 1, size - 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(0, 1))
    return np.asarray(np.einsum("rcihw,hwio->rco", windows, kernel_HWio))


@pytest.mark.parametrize(("layer", "size"), [(0, 4), (1, 2)])
def test_a_transposed_convolution_is_as_in_flax(layer: int, size: int) -> None:
    name = f"decoder/dpt/reassemble_blocks/resize_layers_{layer}/kernel"
    generator = np.random.default_rng(0)
    kernel_HWio, x_HWi = generator.normal(size=(size, size, 3, 3)), generator.normal(size=(2, 3, 3))
    ours = to_torch(name, torch.from_numpy(kernel_HWio))
    x_1iHW = torch.from_numpy(x_HWi).permute(2, 0, 1)[None]
    actual_oHW = F.conv_transpose2d(x_1iHW, ours, stride=size)[0]
    np.testing.assert_allclose(
        actual_oHW.permute(1, 2, 0), flax_conv_transpose(x_HWi, kernel_HWio), atol=1e-12
    )


def test_the_number_of_classes_is_read_from_the_head(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    arrays = scenic_arrays(dense, "segmentation")
    linear = f"decoder/{LINEAR['segmentation']}"
    for name in (f"{linear}/kernel", f"{linear}/bias"):
        arrays[name] = arrays[name][..., :-1]
    zips = write_zips(dense, tmp_path, segmentation=arrays)
    found, _ = read_scenic_heads(list(zips.values()), model)
    assert found.config.num_labels == 4


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


def test_zips_of_other_tasks_and_towers_are_refused(
    dense: Tipsv2DptForDensePrediction, model: Tipsv2Model, tmp_path: Path
) -> None:
    depth, *others = write_zips(dense, tmp_path).values()
    twice = write_scenic(dense, tmp_path / "again", "depth")
    wide = small_model("so-like", vocab_size=8, text_layers=1)
    shallow = small_model("b-like", vocab_size=8, layers=3, text_layers=1)
    for paths, tower, message in [
        ([depth, twice], model, "tips_v2_small_depth"),
        (others, model, "no heads for depth"),
        ([depth, *others], wide, "width 128, .* 144"),
        ([depth, *others], shallow, "3 layers"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            read_scenic_heads(paths, tower)


def test_a_path_without_heads_is_refused(releases: dict[str, "Release"], tmp_path: Path) -> None:
    for path, message in [
        (tmp_path, "holds no dense heads"),
        (tmp_path / "nowhere", "is not a folder"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(releases["b-like"].pair, dense=path)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "taps"), [(12, [3, 6, 9, 12]), (27, [7, 14, 21, 27])])
def test_heads_read_the_layers_of_the_release(
    dense: Tipsv2DptForDensePrediction, tmp_path: Path, depth: int, taps: list[int]
) -> None:
    tower = small_model("b-like", vocab_size=8, layers=depth, text_layers=1)
    found, _ = read_scenic_heads(list(write_zips(dense, tmp_path).values()), tower)
    assert found.backbone.config.out_indices == taps
