"""The graphs are free in every size, carry nothing of this machine, and leave the model alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from transformers import Tipsv2Model

from model.export import saving
from model.export.towers import trace_text, trace_vision
from model.export.tracing import OPSET
from model.graphs import TEXT_FILE, VISION_FILE
from model.package import ModelPackage
from model.runtime.openvino_runtime import openvino_core


def axes(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
    """Names and sizes of the axes of a graph's inputs or outputs."""
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_the_vision_graph_is_free_in_batch_height_and_width(tiny_package: ModelPackage) -> None:
    graph = onnx.load(tiny_package.file(VISION_FILE)).graph
    assert axes(list(graph.input)) == {"pixel_values": ["batch", 3, "height", "width"]}
    outputs = axes(list(graph.output))
    assert list(outputs) == ["cls1", "cls2", "patch_embeddings", "value_embeddings"]
    assert outputs["cls1"] == outputs["cls2"] == ["batch", 32]
    for name in ("patch_embeddings", "value_embeddings"):
        batch, patches, width = outputs[name]
        assert (batch, width) == ("batch", 32)
        assert isinstance(patches, str)


def test_the_text_graph_is_free_in_batch_and_length(tiny_package: ModelPackage) -> None:
    graph = onnx.load(tiny_package.file(TEXT_FILE)).graph
    assert axes(list(graph.input)) == {
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "tokens"],
    }
    assert axes(list(graph.output)) == {"text_embeddings": ["batch", 32]}


@pytest.mark.parametrize("file", [VISION_FILE, TEXT_FILE])
def test_graphs_are_valid_and_carry_no_trace_of_this_machine(
    tiny_package: ModelPackage, project_root: Path, file: str
) -> None:
    path = tiny_package.file(file)
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    content = path.read_bytes()
    assert b".py" not in content
    assert str(project_root).encode() not in content


def test_no_operator_that_tensorrt_refuses(tiny_package: ModelPackage) -> None:
    operators = {node.op_type for node in onnx.load(tiny_package.file(VISION_FILE)).graph.node}
    assert "Resize" not in operators


def test_a_row_of_padding_gives_zeros(tiny_package: ModelPackage) -> None:
    path = tiny_package.file(TEXT_FILE)
    inputs = {
        "input_ids": np.array([[5, 6], [0, 0]]),
        "attention_mask": np.array([[1, 1], [0, 0]]),
    }
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino_core().compile_model(path, "CPU")
    for embeddings_BD in (session.run(None, inputs)[0], compiled(inputs)[0]):
        assert np.isfinite(embeddings_BD).all()
        assert (embeddings_BD[1] == 0).all()
        assert (embeddings_BD[0] != 0).any()


def test_the_model_is_as_before(tiny_model: Tipsv2Model, tmp_path: Path) -> None:
    tiny_model.set_attn_implementation("sdpa")
    tiny_model.train()
    try:
        saving.save_graph(trace_text(tiny_model), tmp_path / "new" / "text.onnx")
        assert tiny_model.training
        assert tiny_model.text_model.config._attn_implementation == "sdpa"
        assert tiny_model.vision_model.config._attn_implementation == "sdpa"
    finally:
        tiny_model.eval()


@pytest.mark.parametrize("trace", [trace_vision, trace_text])
def test_large_weights_go_beside_the_graph(
    trace: Callable[[Tipsv2Model], onnx_ir.Model],
    tiny_model: Tipsv2Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saving, "MAX_INLINE_BYTES", 0)
    saving.save_graph(trace(tiny_model), tmp_path / "graph.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.onnx", "graph.onnx.data"]
    onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
