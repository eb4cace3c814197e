"""Graphs are written in every precision."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from transformers import Tipsv2Model

from model.export import tracing as saving
from model.export.graph_writer import PARTS, PackageContent, trace_text, trace_vision, write_graphs
from model.export.int8 import quantise
from model.export.tracing import OPSET
from model.graphs import TEXT_FILE, VISION_FILE, Part, Precision, graph_file
from model.package import ModelPackage
from model.parity.inputs import gate_images, image_batch
from model.runtime.openvino_runtime import openvino_core
from model.segmentation import l2_normalize

# The graphs are free in every size, carry nothing of this machine, and leave the model alone.


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


@pytest.mark.slow
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


@pytest.mark.slow
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


# Every part in every precision: what is written, what it computes, and who can read it.

FloatArray = NDArray[np.float32]
EVERY = [(part, precision) for precision in PARTS for part in sorted(PARTS[precision])]
# The lowest cosine with float32 that was seen is nearer to one by half.
LOWEST_COSINE = {
    "fp32": 0.999999,
    "fp16": 0.9999,
    "bf16": 0.999,
    "int8_weights": 0.999,
    "int8": 0.99,
}


def inputs_of(part: Part) -> dict[str, NDArray[Any]]:
    """Real images, or texts of several lengths."""
    if part != "text":
        return {"pixel_values": image_batch(gate_images(), (56, 84), batch=2)}
    mask_BL = (np.arange(9) < np.array([9, 2, 5])[:, None]).astype(np.int64)
    token_ids_BL = np.random.default_rng(0).integers(2, 200, mask_BL.shape) * mask_BL
    return {"input_ids": token_ids_BL, "attention_mask": mask_BL}


def run_onnx(path: Path, inputs: dict[str, NDArray[Any]]) -> list[FloatArray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs: list[FloatArray] = session.run(None, inputs)
    return outputs


def run_openvino(path: Path, inputs: dict[str, NDArray[Any]]) -> list[FloatArray]:
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    outputs = openvino_core().compile_model(path, "CPU", exact)(inputs)
    return [value.copy() for value in outputs.to_tuple()]


def runs(path: Path, precision: Precision, inputs: dict[str, Any]) -> Iterator[list[FloatArray]]:
    yield run_openvino(path, inputs)
    # ONNX Runtime's CPU provider has no kernels for bf16.
    if precision != "bf16":
        yield run_onnx(path, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "precision"), EVERY)
def test_each_precision_computes_nearly_what_float32_computes(
    tiny_graphs: Path, part: Part, precision: Precision
) -> None:
    inputs = inputs_of(part)
    references = run_onnx(tiny_graphs / graph_file(part), inputs)
    for outputs in runs(tiny_graphs / graph_file(part, precision), precision, inputs):
        for ours, reference in zip(outputs, references, strict=True):
            assert ours.dtype == np.float32
            assert ours.shape == reference.shape
            if part in {"vision", "text"}:
                cosine = (l2_normalize(ours) * l2_normalize(reference)).sum(axis=-1).min()
                assert cosine > LOWEST_COSINE[precision]
            else:
                error = np.abs(ours - reference).mean() / np.abs(reference).mean()
                assert error < 2 * (1 - LOWEST_COSINE[precision]) ** 0.5


@pytest.mark.parametrize(("part", "precision"), EVERY)
def test_each_graph_is_valid_and_speaks_float32(
    tiny_graphs: Path, part: Part, precision: Precision
) -> None:
    path = tiny_graphs / graph_file(part, precision)
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path, load_external_data=False).graph
    types = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert types <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_nothing_of_this_machine_is_in_any_file(tiny_graphs: Path, project_root: Path) -> None:
    traces = [
        project_root,
        tiny_graphs.parent,
        Path.home() / "x",
        Path(onnxruntime.__file__).parents[1],
    ]
    for path in (tiny_graphs / "onnx").iterdir():
        content = path.read_bytes()
        for trace in traces:
            assert str(trace).removesuffix("x").encode() not in content, f"{trace}: {path.name}"


def test_the_depth_head_never_computes_in_fp16_or_8_bits(tiny_graphs: Path) -> None:
    assert {precision for precision in PARTS if "depth" in PARTS[precision]} == {"fp32", "bf16"}
    written = {path.name for path in (tiny_graphs / "onnx").glob("depth*.onnx")}
    assert written == {"depth_model.onnx", "depth_model_bf16.onnx"}


def test_8_bits_make_files_small(tiny_graphs: Path) -> None:
    stored: dict[str, dict[int, int]] = {}
    for precision in ("fp32", "int8"):
        weights = onnx.load(tiny_graphs / graph_file("text", precision)).graph.initializer
        sizes = stored.setdefault(precision, {})
        for weight in weights:
            size = len(onnx.numpy_helper.to_array(weight).tobytes())
            sizes[weight.data_type] = sizes.get(weight.data_type, 0) + size
    int8, fp32 = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT
    # With the table of words.
    assert stored["int8"][int8] > stored["fp32"][fp32] / 5
    assert stored["int8"][fp32] < stored["fp32"][fp32] / 4


def test_a_graph_beyond_one_protobuf_message_is_quantised_alike(
    tiny_graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [inputs_of("vision")]
    path = tiny_graphs / graph_file("vision")
    inline = quantise(onnx_ir.load(path), iter(examples))
    monkeypatch.setattr(saving, "MAX_INLINE_BYTES", 0)
    beside = quantise(onnx_ir.load(path), iter(examples))
    onnx_ir.save(inline, tmp_path / "inline.onnx")
    onnx_ir.save(beside, tmp_path / "beside.onnx")
    pairs = zip(
        run_onnx(tmp_path / "inline.onnx", examples[0]),
        run_onnx(tmp_path / "beside.onnx", examples[0]),
        strict=True,
    )
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)


def test_what_int8_leaves_out_stays_float(tiny_graphs: Path) -> None:
    graph = onnx.load(tiny_graphs / graph_file("vision", "int8")).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    quantised = [n for n in products if makers.get(n.input[1]) == "DequantizeLinear"]
    # Two blocks of six products each; the value path and the position embeddings have six more.
    assert len(quantised) == 12
    assert len(products) == 12 + 4 + 2
    for node in graph.node:
        if node.op_type in {"Conv", "MultiHeadAttention"}:
            assert not any(makers.get(name) == "DequantizeLinear" for name in node.input)


@pytest.mark.slow
def test_a_calibration_folder_without_images_is_refused(
    tiny_content: PackageContent, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    content = replace(tiny_content, calibration=tmp_path, precisions=("int8",), dense=None)
    with pytest.raises(ValueError, match="holds no images"):
        write_graphs(content, tmp_path / "out", lambda _: None)


def test_an_unknown_precision_is_refused(tiny_content: PackageContent, tmp_path: Path) -> None:
    content = replace(tiny_content, precisions=("fp8",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown precisions"):
        write_graphs(content, tmp_path, lambda _: None)
    assert not any(tmp_path.iterdir())
