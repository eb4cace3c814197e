"""Heads read from Scenic zips compute the same maps as the transformers heads."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import Tipsv2DptForDensePrediction, Tipsv2Model

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.read import read_checkpoint
from model.checkpoints.scenic import head_sources, read_scenic_heads
from model.graphs import DENSE_TASKS, DenseTask
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

OUTPUTS: dict[DenseTask, str] = {
    "depth": "predicted_depth",
    "normals": "normals",
    "segmentation": "segmentation_logits",
}


@pytest.fixture(scope="module")
def model() -> Tipsv2Model:
    return small_model("b-like", vocab_size=8, text_layers=1)


@pytest.fixture(scope="module")
def dense(model: Tipsv2Model) -> Tipsv2DptForDensePrediction:
    return dense_model(model, depth_activation="linear")


def maps(
    dense: Tipsv2DptForDensePrediction, tasks: tuple[DenseTask, ...], size_hw: tuple[int, int]
) -> dict[DenseTask, torch.Tensor]:
    """The output of each of these heads."""
    pixels_B3HW = torch.rand(2, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    features = dense.backbone(pixels_B3HW).feature_maps
    grid = {"patch_height": size_hw[0] // 14, "patch_width": size_hw[1] // 14}
    found: dict[DenseTask, torch.Tensor] = {}
    for task in tasks:
        fused = getattr(dense, f"{task}_neck")(features, **grid)
        output = getattr(dense, f"{task}_decoder")(fused[-1])
        found[task] = dense.depth_bin_regressor(output) if task == "depth" else output
    return found


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(56, 56), (28, 84)])
def test_three_zips_give_the_maps_of_the_heads(
    releases: dict[str, "Release"], tmp_path: Path, size_hw: tuple[int, int]
) -> None:
    original = dense_model(releases["b-like"].model, depth_activation="linear")
    for task in DENSE_TASKS:
        write_scenic(original, tmp_path, task)
    checkpoint = read_checkpoint(releases["b-like"].pair, dense=tmp_path)
    assert checkpoint.dense is not None
    assert checkpoint.dense_tasks == DENSE_TASKS
    assert not checkpoint.dense.training
    pixels_B3HW = torch.rand(2, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    actual, expected = checkpoint.dense(pixels_B3HW), original(pixels_B3HW)
    for name in OUTPUTS.values():
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-5)
        assert expected[name].std() > 0.01, "a constant map would hide mistakes"


@torch.no_grad()
@pytest.mark.parametrize("task", DENSE_TASKS)
def test_one_zip_alone_gives_one_head(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path, task: DenseTask
) -> None:
    found = read_scenic_heads([write_scenic(dense, tmp_path, task)], model)
    assert found.tasks == (task,)
    actual, expected = (maps(heads, (task,), (56, 28))[task] for heads in (found.model, dense))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    for other in set(DENSE_TASKS) - {task}:
        assert not hasattr(found.model, f"{other}_neck")
        assert not hasattr(found.model, f"{other}_decoder")
    backbone = dict(found.model.backbone.named_parameters())
    for name, parameter in model.vision_model.named_parameters():
        assert backbone[name].data_ptr() == parameter.data_ptr(), name


@torch.no_grad()
@pytest.mark.parametrize("activation", [None, "linear", "relu"])
@pytest.mark.parametrize("size_hw", [(56, 84), (42, 70)])
def test_depth_is_what_the_released_decoder_computes(
    model: Tipsv2Model,
    dense: Tipsv2DptForDensePrediction,
    tmp_path: Path,
    activation: Literal["linear", "relu"] | None,
    size_hw: tuple[int, int],
) -> None:
    path = write_scenic(dense, tmp_path, "depth")
    arrays = scenic_arrays(dense, "depth")
    pixels_B3HW = torch.rand(2, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    expected, other = (
        depth_in_metres(arrays, taps(model, pixels_B3HW), activation=relu)
        for relu in (activation == "relu", activation != "relu")
    )
    chosen: Any = {} if activation is None else {"depth_activation": activation}
    found = read_scenic_heads([path], model, **chosen)
    assert found.origin["depth_activation"] == (activation or "linear")
    actual = maps(found.model, ("depth",), size_hw)["depth"]
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
    output = np.zeros((rows * size, columns * size, kernel_HWio.shape[3]))
    for row in range(rows * size):
        for column in range(columns * size):
            window = padded[row : row + size, column : column + size]
            output[row, column] = np.einsum("hwi,hwio->o", window, kernel_HWio)
    return output


@pytest.mark.parametrize(("layer", "size"), [(0, 4), (1, 2)])
def test_a_transposed_convolution_is_as_in_flax(layer: int, size: int) -> None:
    name = f"neck.reassemble_stage.layers.{layer}.resize.weight"
    source = head_sources([name], "depth")[name]
    generator = np.random.default_rng(0)
    kernel_HWio, x_HWi = generator.normal(size=(size, size, 3, 3)), generator.normal(size=(2, 3, 3))
    ours = source.change(torch.from_numpy(kernel_HWio))
    x_1iHW = torch.from_numpy(x_HWi).permute(2, 0, 1)[None]
    actual_oHW = F.conv_transpose2d(x_1iHW, ours, stride=size)[0]
    np.testing.assert_allclose(
        actual_oHW.permute(1, 2, 0), flax_conv_transpose(x_HWi, kernel_HWio), atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, name: {key: value for key, value in arrays.items() if key != name},
        lambda arrays, name: {key + "_" * (key == name): v for key, v in arrays.items()},
        lambda arrays, name: arrays | {name: np.repeat(arrays[name], 2, axis=0)},
    ],
    ids=["dropped", "renamed", "doubled"],
)
def test_any_one_array_dropped_renamed_or_doubled_is_refused(
    model: Tipsv2Model,
    dense: Tipsv2DptForDensePrediction,
    tmp_path: Path,
    change: Callable[[Arrays, str], Arrays],
) -> None:
    arrays = scenic_arrays(dense, "normals")
    assert len(arrays) == 52
    for name in arrays:
        path = write_arrays(tmp_path / "tips_v2_small_normals_dpt.zip", change(arrays, name))
        with pytest.raises(CheckpointError, match=r"normals_dpt\.zip"):
            read_scenic_heads([path], model)


def test_the_number_of_classes_is_read_from_the_head(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    arrays = scenic_arrays(dense, "segmentation")
    linear = f"decoder/{LINEAR['segmentation']}"
    for name in (f"{linear}/kernel", f"{linear}/bias"):
        arrays[name] = arrays[name][..., :-1]
    found = read_scenic_heads([write_arrays(tmp_path / "x_dpt.zip", arrays)], model)
    assert found.model.config.num_labels == 4


def test_heads_for_another_tower_are_refused(
    dense: Tipsv2DptForDensePrediction, model: Tipsv2Model, tmp_path: Path
) -> None:
    path = write_scenic(dense, tmp_path, "depth")
    named = write_scenic(dense, tmp_path, "depth", called="so400m14")
    wide = small_model("so-like", vocab_size=8, text_layers=1)
    shallow = small_model("b-like", vocab_size=8, layers=3, text_layers=1)
    for zip_, tower, message in [
        (path, wide, "width 128, .* 144"),
        (path, shallow, "3 layers"),
        (named, model, "so400m14.* w128d4"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            read_scenic_heads([zip_], tower)


def test_wrong_zips_are_refused(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    depth = write_scenic(dense, tmp_path, "depth")
    again = Path(shutil.copy(depth, tmp_path / "again_dpt.zip"))
    misnamed = Path(shutil.copy(depth, tmp_path / "tips_v2_small_normals_dpt.zip"))
    converted = write_arrays(
        tmp_path / "tips_v2_l14_depth_dpt_pytorch.zip",
        {"reassemble.out_projections.0.bias": np.zeros(3, np.float32)},
    )
    arrays = scenic_arrays(dense, "depth")
    arrays["decoder/dpt/project/bias"][0] = np.inf
    infinite = write_arrays(tmp_path / "x_dpt.zip", arrays)
    for paths, message in [
        ([misnamed], "normals.* depth"),
        ([depth, again], "tips_v2_small_depth"),
        ([converted], "whether its kernels are mirrored"),
        ([infinite], "infinite values in 'decoder/dpt/project/bias'"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            read_scenic_heads(paths, model)


def test_a_path_without_heads_is_refused(releases: dict[str, "Release"], tmp_path: Path) -> None:
    for path, message in [
        (tmp_path, "holds no dense heads"),
        (tmp_path / "nowhere", "neither a file nor a folder"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(releases["b-like"].pair, dense=path)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "taps"), [(12, [3, 6, 9, 12]), (27, [7, 14, 21, 27])])
def test_heads_read_the_layers_of_the_release(
    dense: Tipsv2DptForDensePrediction, tmp_path: Path, depth: int, taps: list[int]
) -> None:
    tower = small_model("b-like", vocab_size=8, layers=depth, text_layers=1)
    found = read_scenic_heads([write_scenic(dense, tmp_path, "normals")], tower)
    assert found.model.backbone.config.out_indices == taps
