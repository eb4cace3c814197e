"""The dense graphs compute what transformers computes, at every size that they accept."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import Tipsv2DptConfig, Tipsv2DptForDensePrediction

from model.class_names import ade20k_names
from model.export.dense import TappedVision, segmentation_labels
from model.graphs import DENSE_TASKS, TAPS, DenseTask, graph_file
from model.package import ModelPackage
from model.parity.reference import DENSE_FIELDS
from model.runtime.load import load_runtime
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


def test_depth_is_in_metres_and_varies(dense_package: ModelPackage) -> None:
    pixels = np.random.default_rng(1).random((1, 3, 56, 56), dtype=np.float32)
    with closing(load_runtime(dense_package, runtime="onnx")) as runtime:
        depth_BHW = runtime.estimate("depth", pixels)
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


@pytest.mark.parametrize("grid_hw", [(3, 4), (4, 5)])
def test_odd_rows_of_patches_are_an_error(tiny_graphs: Path, grid_hw: tuple[int, int]) -> None:
    taps = np.zeros((1, 4, 32), np.float32), np.zeros((1, 4, *grid_hw, 32), np.float32)
    with pytest.raises(Exception, match="broadcast"):
        run_onnx(tiny_graphs / graph_file("normals"), dict(zip(TAPS, taps, strict=True)))


def test_a_backbone_without_its_last_norm_is_refused(
    tiny_dense: Tipsv2DptForDensePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_dense.backbone.config, "apply_layernorm", False)
    with pytest.raises(ValueError, match="apply_layernorm=True"):
        TappedVision(tiny_dense)


@pytest.mark.parametrize(
    ("num_labels", "names", "wanted"),
    [
        (3, None, ["class 1", "class 2", "class 3"]),
        (150, None, ade20k_names()),
        (2, {1: "crack", 0: "weld"}, ["weld", "crack"]),
    ],
)
def test_classes_are_named_by_the_configuration_or_are_the_released_ones(
    num_labels: int, names: dict[int, str] | None, wanted: list[str]
) -> None:
    config = Tipsv2DptConfig()
    config.num_labels = num_labels
    if names is not None:
        config.id2label = names
    dense: Any = SimpleNamespace(config=config)
    assert segmentation_labels(dense) == wanted
