"""Heads read from Scenic zips compute what the transformers heads that were written do."""

import shutil
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
from model.checkpoints.scenic import head_sources, read_scenic_heads
from model.graphs import DENSE_TASKS, DenseTask
from tests.model.checkpoints.official_layout import Arrays, small_model
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
    return dense_model(model)


def maps(
    dense: Tipsv2DptForDensePrediction, tasks: tuple[DenseTask, ...], size_hw: tuple[int, int]
) -> dict[DenseTask, torch.Tensor]:
    """Each head's output, head by head, so that absent ones are not asked."""
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
@pytest.mark.parametrize("size_hw", [(56, 56), (28, 84), (112, 56)])
def test_three_zips_give_the_maps_of_the_heads(
    releases: dict[str, "Release"], tmp_path: Path, size_hw: tuple[int, int]
) -> None:
    original = dense_model(releases["b-like"].model)
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


def test_the_backbone_is_the_models_own_memory(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    found = read_scenic_heads([write_scenic(dense, tmp_path, "depth")], model).model
    backbone = dict(found.backbone.named_parameters())
    for name, parameter in model.vision_model.named_parameters():
        assert backbone[name].data_ptr() == parameter.data_ptr(), name


@torch.no_grad()
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_what_follows_the_depth_heads_last_convolution_is_chosen(
    model: Tipsv2Model, tmp_path: Path, activation: Any
) -> None:
    original = dense_model(model, depth_activation=activation)
    path = write_scenic(original, tmp_path, "depth")
    found = read_scenic_heads([path], model, depth_activation=activation)
    assert found.origin["depth_activation"] == activation
    expected = maps(original, ("depth",), (56, 56))["depth"]
    torch.testing.assert_close(
        maps(found.model, ("depth",), (56, 56))["depth"], expected, rtol=0, atol=1e-5
    )
    other: Any = {"relu": "linear", "linear": "relu"}[activation]
    wrong = read_scenic_heads([path], model, depth_activation=other)
    assert (maps(wrong.model, ("depth",), (56, 56))["depth"] - expected).abs().max() > 1e-3


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
def test_a_transposed_kernel_does_what_flax_does_with_it(layer: int, size: int) -> None:
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
def test_any_one_array_that_is_not_right_is_refused(
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


def test_one_output_more_or_less_is_the_heads_own_number(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    arrays = scenic_arrays(dense, "segmentation")
    linear = f"decoder/{LINEAR['segmentation']}"
    arrays[f"{linear}/kernel"] = arrays[f"{linear}/kernel"][:, :-1]
    arrays[f"{linear}/bias"] = arrays[f"{linear}/bias"][:-1]
    found = read_scenic_heads([write_arrays(tmp_path / "x_dpt.zip", arrays)], model)
    assert found.model.config.num_labels == 4


def test_a_head_of_another_width_is_refused(
    dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    other = small_model("so-like", vocab_size=8, text_layers=1)
    with pytest.raises(CheckpointError, match=r"a tower of width 128, and the model's has 144"):
        read_scenic_heads([write_scenic(dense, tmp_path, "depth")], other)


def test_a_file_called_after_another_variant_is_refused(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    path = write_scenic(dense, tmp_path, "depth", called="so400m14")
    with pytest.raises(CheckpointError, match=r"is called so400m14 and holds w128d4"):
        read_scenic_heads([path], model)


def test_a_file_called_after_another_task_is_refused(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    path = write_scenic(dense, tmp_path, "depth")
    wrong = path.rename(tmp_path / "tips_v2_small_normals_dpt.zip")
    with pytest.raises(CheckpointError, match=r"is called normals and holds a head for depth"):
        read_scenic_heads([wrong], model)


def test_two_heads_for_one_task_are_refused(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    first = write_scenic(dense, tmp_path, "depth")
    second = Path(shutil.copy(first, tmp_path / "again_dpt.zip"))
    with pytest.raises(CheckpointError, match=r"head for depth, and so does tips_v2_small_depth"):
        read_scenic_heads([first, second], model)


def test_a_converted_zip_is_refused(model: Tipsv2Model, tmp_path: Path) -> None:
    path = tmp_path / "tips_v2_l14_depth_dpt_pytorch.zip"
    write_arrays(path, {"reassemble.out_projections.0.bias": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"does not tell whether its kernels are mirrored"):
        read_scenic_heads([path], model)


def test_values_that_are_no_numbers_are_refused(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    arrays = scenic_arrays(dense, "depth")
    arrays["decoder/dpt/project/bias"][0] = np.inf
    path = write_arrays(tmp_path / "x_dpt.zip", arrays)
    with pytest.raises(CheckpointError, match="infinite values in 'decoder/dpt/project/bias'"):
        read_scenic_heads([path], model)


def test_a_tower_of_three_layers_is_too_shallow(
    dense: Tipsv2DptForDensePrediction, tmp_path: Path
) -> None:
    shallow = small_model("b-like", vocab_size=8, layers=3, text_layers=1)
    with pytest.raises(CheckpointError, match="has 3 layers, and dense heads look at 4"):
        read_scenic_heads([write_scenic(dense, tmp_path, "depth")], shallow)


@pytest.mark.parametrize("kind", ["nothing", "no such path"])
def test_where_there_are_no_heads_is_refused(
    releases: dict[str, "Release"], tmp_path: Path, kind: str
) -> None:
    where = tmp_path if kind == "nothing" else tmp_path / "nowhere"
    with pytest.raises(CheckpointError, match=r"holds no dense heads|neither a file nor a folder"):
        read_checkpoint(releases["b-like"].pair, dense=where)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "taps"),
    [(12, [3, 6, 9, 12]), (24, [6, 12, 18, 24]), (27, [7, 14, 21, 27]), (40, [10, 20, 30, 40])],
)
def test_heads_look_at_the_layers_of_the_release(
    dense: Tipsv2DptForDensePrediction, tmp_path: Path, depth: int, taps: list[int]
) -> None:
    tower = small_model("b-like", vocab_size=8, layers=depth, text_layers=1)
    found = read_scenic_heads([write_scenic(dense, tmp_path, "normals")], tower)
    assert found.model.backbone.config.out_indices == taps
