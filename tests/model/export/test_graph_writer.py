"""Graphs in every precision: free in every size, close to float32, and without private data."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from model.export.graph_writer import PARTS
from model.export.tracing import OPSET
from model.graphs import TAPS, VISION_OUTPUTS, Part, Precision, graph_file
from model.parity.inputs import gate_images, image_batch
from model.runtime.openvino_runtime import openvino_core
from model.segmentation import l2_normalize

FloatArray = NDArray[np.float32]
EVERY = [(part, precision) for precision in PARTS for part in sorted(PARTS[precision])]
# The lowest cosine with float32 that was seen is nearer to one by half.
LOWEST_COSINE = {
    "fp32": 0.999999,
    "fp16": 0.9999,
    "bf16": 0.999,
    "int8": 0.975,
}


def axes(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
    """Names and sizes of the axes of a graph's inputs or outputs."""
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in values
    }


def inputs_of(part: Part) -> dict[str, NDArray[Any]]:
    """Real images, or texts of several lengths."""
    if part == "vision":
        return {"pixel_values": image_batch(gate_images(), (56, 84), batch=2)}
    if part != "text":
        shown = np.random.default_rng(0)
        return {
            "tap_cls": shown.standard_normal((2, 4, 32), np.float32),
            "tap_patches": shown.standard_normal((2, 4, 4, 6, 32), np.float32),
        }
    mask_BL = (np.arange(9) < np.array([9, 2, 5])[:, None]).astype(np.int64)
    token_ids_BL = np.random.default_rng(0).integers(2, 200, mask_BL.shape) * mask_BL
    return {"input_ids": token_ids_BL, "attention_mask": mask_BL}


def run_onnx(path: Path, inputs: dict[str, NDArray[Any]]) -> list[FloatArray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs: list[FloatArray] = session.run(None, inputs)
    return outputs


def run_openvino(path: Path, inputs: dict[str, NDArray[Any]]) -> list[FloatArray]:
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    outputs = openvino_core().compile_model(path, "CPU", exact)(inputs)
    return [value.copy() for value in outputs.to_tuple()]


def test_the_towers_are_free_in_batch_and_size(tiny_graphs: Path) -> None:
    vision = onnx.load(tiny_graphs / graph_file("vision")).graph
    assert axes(list(vision.input)) == {"pixel_values": ["batch", 3, "height", "width"]}
    outputs = axes(list(vision.output))
    assert list(outputs) == [*VISION_OUTPUTS, *TAPS]
    assert outputs["cls1"] == outputs["cls2"] == ["batch", 32]
    assert outputs["tap_cls"] == ["batch", 4, 32]
    for name, fixed in (("patch_embeddings", 1), ("value_embeddings", 1), ("tap_patches", 2)):
        free = [axis for axis in outputs[name] if isinstance(axis, str)]
        assert len(free) == 1 + fixed, name
        assert (outputs[name][0], outputs[name][-1]) == ("batch", 32)
    # TensorRT refuses transformers' antialiased resize of position embeddings.
    assert "Resize" not in {node.op_type for node in vision.node}
    text = onnx.load(tiny_graphs / graph_file("text")).graph
    tokens = ["batch", "tokens"]
    assert axes(list(text.input)) == {"input_ids": tokens, "attention_mask": tokens}
    assert axes(list(text.output)) == {"text_embeddings": ["batch", 32]}


@pytest.mark.slow
@pytest.mark.parametrize(("part", "precision"), EVERY)
def test_each_precision_computes_nearly_what_float32_computes(
    tiny_graphs: Path, part: Part, precision: Precision
) -> None:
    inputs = inputs_of(part)
    references = run_onnx(tiny_graphs / graph_file(part), inputs)
    # ONNX Runtime's CPU provider has no kernels for bf16.
    for run in (run_openvino, run_onnx)[: 1 if precision == "bf16" else 2]:
        outputs = run(tiny_graphs / graph_file(part, precision), inputs)
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
def test_each_graph_is_valid_and_has_float32_inputs_and_outputs(
    tiny_graphs: Path, part: Part, precision: Precision
) -> None:
    path = tiny_graphs / graph_file(part, precision)
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    types = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert types <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    if precision == "fp32":
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
