"""The dense graphs compute what transformers computes, at every size that they accept."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import Tipsv2DptForDensePrediction

from model.graphs import DENSE_TASKS, TAPS, DenseTask, graph_file
from model.parity.reference import DENSE_FIELDS
from tests.model.export.test_graph_writer import run_onnx, run_openvino

SIZES = [(1, 56, 56), (2, 28, 84), (1, 84, 28), (3, 112, 56), (1, 28, 28)]


def named(run: Any, path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs of a graph by name."""
    outputs = onnx.load(path, load_external_data=False).graph.output
    return dict(zip((output.name for output in outputs), run(path, inputs), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_onnx, run_openvino])
def test_maps_are_as_in_transformers(
    tiny_graphs: Path, tiny_dense: Tipsv2DptForDensePrediction, run: Any
) -> None:
    for batch, height, width in SIZES:
        pixels = np.random.default_rng(0).random((batch, 3, height, width), dtype=np.float32)
        with torch.no_grad():
            reference = tiny_dense(torch.from_numpy(pixels))
        outputs = named(run, tiny_graphs / graph_file("vision"), {"pixel_values": pixels})
        taps = {name: outputs[name] for name in TAPS}
        for task in DENSE_TASKS:
            (ours,) = run(tiny_graphs / graph_file(task), taps)
            theirs = getattr(reference, DENSE_FIELDS[task]).numpy()
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


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
