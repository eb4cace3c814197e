"""The dense graphs compute what transformers computes, at every size that they accept."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import Tipsv2DptForDensePrediction

from model.export.dense import trace_dense
from model.graphs import DENSE_TASKS, DenseTask, graph_file
from model.parity.reference import DENSE_FIELDS
from model.runtime.openvino_runtime import openvino_core


def onnx_session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("task", DENSE_TASKS)
def test_maps_are_as_in_transformers(
    tiny_graphs: Path, tiny_dense: Tipsv2DptForDensePrediction, task: DenseTask
) -> None:
    path = tiny_graphs / graph_file(task)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    session, compiled = onnx_session(path), openvino_core().compile_model(path, "CPU", exact)
    for batch, height, width in [(1, 56, 56), (2, 28, 84), (1, 84, 28), (3, 112, 56), (1, 28, 28)]:
        pixels = np.random.default_rng(0).random((batch, 3, height, width), dtype=np.float32)
        with torch.no_grad():
            reference = getattr(tiny_dense(torch.from_numpy(pixels)), DENSE_FIELDS[task]).numpy()
        inputs = {"pixel_values": pixels}
        for ours in (session.run(None, inputs)[0], compiled(inputs)[0]):
            assert ours.shape == reference.shape
            atol = 1e-5 * np.abs(reference).max()
            np.testing.assert_allclose(ours, reference, rtol=0, atol=atol)


def test_depth_is_in_metres_and_varies(tiny_graphs: Path) -> None:
    pixels = np.random.default_rng(1).random((1, 3, 56, 56), dtype=np.float32)
    session = onnx_session(tiny_graphs / graph_file("depth"))
    depth_BHW = session.run(None, {"pixel_values": pixels})[0]
    assert 0.001 <= depth_BHW.min() <= depth_BHW.max() <= 10
    assert depth_BHW.std() > 0.01


@pytest.mark.parametrize("task", DENSE_TASKS)
def test_axes_are_free_and_resizes_are_those_that_parsers_take(
    tiny_graphs: Path, task: DenseTask
) -> None:
    graph = onnx.load(tiny_graphs / graph_file(task), load_external_data=False).graph
    (output,) = graph.output
    sizes = [axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim]
    channels = {"depth": [], "normals": [3], "segmentation": [5]}[task]
    assert output.name == task
    assert sizes == ["batch", *channels, "map_height", "map_width"]
    resizes = [node for node in graph.node if node.op_type == "Resize"]
    assert len(resizes) == 4
    for node in resizes:
        settings = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        assert settings["coordinate_transformation_mode"] == b"align_corners"
        assert not settings.get("antialias", 0)


def test_the_backbone_is_stored_once(
    tiny_graphs: Path, tiny_dense: Tipsv2DptForDensePrediction
) -> None:
    graphs = [
        onnx.load(tiny_graphs / graph_file(task), load_external_data=False).graph
        for task in DENSE_TASKS
    ]
    places = [
        {entry.key: entry.value for entry in weight.external_data}
        for graph in graphs
        for weight in graph.initializer
        if weight.external_data
    ]
    assert {place["location"] for place in places} == {"dense_model.onnx.data"}
    layers = tiny_dense.backbone.encoder.layer
    num_matrices = sum(1 for weight in layers.parameters() if weight.ndim == 2)
    assert len({place["offset"] for place in places}) <= len(places) - 2 * num_matrices


def test_odd_rows_of_patches_are_an_error(tiny_graphs: Path) -> None:
    session = onnx_session(tiny_graphs / graph_file("normals"))
    for size_hw in [(42, 56), (56, 70)]:
        with pytest.raises(Exception, match="broadcast"):
            session.run(None, {"pixel_values": np.zeros((1, 3, *size_hw), dtype=np.float32)})


def test_a_backbone_without_its_last_norm_is_refused(
    tiny_dense: Tipsv2DptForDensePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_dense.backbone.config, "apply_layernorm", False)
    with pytest.raises(ValueError, match="apply_layernorm=True"):
        next(trace_dense(tiny_dense))
