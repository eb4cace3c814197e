"""The dense graphs compute what transformers computes, at every size that they may be given."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import Tipsv2DptForDensePrediction

from model.export.dense import trace_dense
from model.graphs import DENSE_TASKS, DenseTask, graph_file
from model.runtime.openvino_runtime import openvino_core

FloatArray = NDArray[np.float32]
Run = Callable[[FloatArray], FloatArray]
OUTPUT_FIELDS = {
    "depth": "predicted_depth",
    "normals": "normals",
    "segmentation": "segmentation_logits",
}


def _run_onnx(session: Any, pixels_B3HW: FloatArray) -> FloatArray:
    output: FloatArray = session.run(None, {"pixel_values": pixels_B3HW})[0]
    return output


def _run_openvino(compiled: Any, pixels_B3HW: FloatArray) -> FloatArray:
    output: FloatArray = compiled({"pixel_values": pixels_B3HW})[0]
    return output


@pytest.fixture(scope="module")
def runs(tiny_graphs: Path) -> dict[DenseTask, list[Run]]:
    """Each task's graph on ONNX Runtime and on OpenVINO, loaded once."""
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    found: dict[DenseTask, list[Run]] = {}
    for task in DENSE_TASKS:
        path = tiny_graphs / graph_file(task)
        found[task] = [
            partial(_run_onnx, onnx_session(path)),
            partial(_run_openvino, openvino_core().compile_model(path, "CPU", exact)),
        ]
    return found


def onnx_session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("task", DENSE_TASKS)
@pytest.mark.parametrize(
    "shape", [(1, 3, 56, 56), (2, 3, 28, 84), (1, 3, 84, 28), (3, 3, 112, 56), (1, 3, 28, 28)]
)
def test_maps_are_as_in_transformers(
    runs: dict[DenseTask, list[Run]],
    tiny_dense: Tipsv2DptForDensePrediction,
    task: DenseTask,
    shape: tuple[int, ...],
) -> None:
    pixels = np.random.default_rng(0).random(shape, dtype=np.float32)
    with torch.no_grad():
        reference = getattr(tiny_dense(torch.from_numpy(pixels)), OUTPUT_FIELDS[task]).numpy()
    for run in runs[task]:
        ours = run(pixels)
        assert ours.shape == reference.shape
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def test_depth_is_in_metres_and_differs_from_place_to_place(tiny_graphs: Path) -> None:
    pixels = np.random.default_rng(1).random((1, 3, 56, 56), dtype=np.float32)
    session = onnx_session(tiny_graphs / graph_file("depth"))
    depth_BHW = session.run(None, {"pixel_values": pixels})[0]
    assert depth_BHW.min() >= 0.001
    assert depth_BHW.max() <= 10
    assert depth_BHW.std() > 0.01


@pytest.mark.parametrize("task", DENSE_TASKS)
def test_axes_are_named_and_free(tiny_graphs: Path, task: DenseTask) -> None:
    path = tiny_graphs / graph_file(task)
    onnx.checker.check_model(path, full_check=True)
    (output,) = onnx.load(path, load_external_data=False).graph.output
    sizes = [axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim]
    channels = {"depth": [], "normals": [3], "segmentation": [5]}[task]
    assert output.name == task
    assert sizes == ["batch", *channels, "map_height", "map_width"]


def test_no_resize_but_the_doubling_that_parsers_take(tiny_graphs: Path) -> None:
    for task in DENSE_TASKS:
        graph = onnx.load(tiny_graphs / graph_file(task), load_external_data=False).graph
        resizes = [node for node in graph.node if node.op_type == "Resize"]
        assert len(resizes) == 4
        for node in resizes:
            settings = {
                entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute
            }
            assert settings["coordinate_transformation_mode"] == b"align_corners"
            assert not settings.get("antialias", 0)


def test_the_backbone_is_stored_once(
    tiny_graphs: Path, tiny_dense: Tipsv2DptForDensePrediction
) -> None:
    all_bytes = sum(weight.nbytes for weight in tiny_dense.parameters())
    weights = (tiny_graphs / "onnx" / "dense_model.onnx.data").stat().st_size
    # Each tensor begins a page of its own, which counts for much in a model as small as this.
    num_tensors = sum(1 for _ in tiny_dense.parameters())
    assert weights < all_bytes + num_tensors * 4096
    places = [
        {entry.key: entry.value for entry in weight.external_data}
        for task in DENSE_TASKS
        for weight in onnx.load(
            tiny_graphs / graph_file(task), load_external_data=False
        ).graph.initializer
        if weight.external_data
    ]
    assert {place["location"] for place in places} == {"dense_model.onnx.data"}
    layers = tiny_dense.backbone.encoder.layer
    num_matrices = sum(1 for weight in layers.parameters() if weight.ndim == 2)
    assert len({place["offset"] for place in places}) <= len(places) - 2 * num_matrices


@pytest.mark.parametrize("size_hw", [(42, 42), (42, 56), (56, 70)])
def test_odd_rows_or_columns_of_patches_fail_rather_than_answer(
    tiny_graphs: Path, size_hw: tuple[int, int]
) -> None:
    pixels = np.zeros((1, 3, *size_hw), dtype=np.float32)
    with pytest.raises(Exception, match="broadcast"):
        onnx_session(tiny_graphs / graph_file("normals")).run(None, {"pixel_values": pixels})


def test_a_backbone_without_its_last_norm_is_refused(
    tiny_dense: Tipsv2DptForDensePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_dense.backbone.config, "apply_layernorm", False)
    with pytest.raises(ValueError, match="apply_layernorm=True"):
        trace_dense(tiny_dense, "depth")
