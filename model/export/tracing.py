"""Trace a module to an ONNX graph, and save it."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import onnx_ir
import torch
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.export.attention import FUSED, define_attention

# The newest that ONNX Runtime 1.22, OpenVINO and TensorRT's parsers fully support.
OPSET: Final = 18
EAGER: Final = "eager"
# Larger weights go to a separate file, which a runtime maps; weights in the graph it copies: B/14's
# vision graph took 0.79 GB of ONNX Runtime's memory instead of 0.45. A message ends at 2 GiB.
MAX_INLINE_BYTES: Final = 2**26
# Smaller tensors, such as shapes and axes, stay in the graph.
MIN_SHARED_BYTES: Final = 1024
# Whole pages, so that a runtime can map a tensor without copying it.
ALIGNMENT: Final = 4096


def trace(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    *,
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
) -> onnx_ir.Model:
    """Trace a module to an ONNX graph.

    Args:
        graph: A module whose forward takes `inputs` and returns one tensor or a tuple.
        inputs: Example inputs by name.
        outputs: Names of the outputs.
        axes: Names of the dynamic axes of each input.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter copies trees with a class that torch itself deprecates.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        # Ids and mask share their axes on purpose.
        warnings.filterwarnings("ignore", message=".*axis name.*shares", category=UserWarning)
        program = torch.onnx.export(
            graph.eval(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=axes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: onnx_ir.Model = program.model
    strip_traces(model)
    define_attention(model)
    _release_matched_graphs()
    return model


def _release_matched_graphs() -> None:
    """Optimise a graph of one node: each rule of onnxscript keeps the last graph that it saw."""
    value = onnx_ir.val("value", onnx_ir.DataType.FLOAT, onnx_ir.Shape([1]))
    node = onnx_ir.node("Relu", [value])
    graph = onnx_ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": OPSET})
    optimize_ir(onnx_ir.Model(graph, ir_version=10))


def strip_traces(model: onnx_ir.Model) -> None:
    """Remove paths and stack traces of this machine: private, and most of the bytes."""
    graph, nodes = model.graph, list(model.graph.all_nodes())
    parts: list[onnx_ir.Model | onnx_ir.Graph | onnx_ir.Node | onnx_ir.Value] = [model, graph]
    parts += [*nodes, *graph.inputs, *graph.initializers.values()]
    for part in (*parts, *(value for node in nodes for value in node.outputs)):
        part.metadata_props.clear()
        part.doc_string = None


@contextmanager
def exportable(module: nn.Module, attention: str = FUSED) -> Iterator[None]:
    """Set evaluation mode and the attention of transformers' models for an export, then restore."""
    models = [inner for inner in module.modules() if isinstance(inner, PreTrainedModel)]
    before = [model.config._attn_implementation for model in models]
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    for model in models:
        model.set_attn_implementation(attention)
    try:
        yield
    finally:
        for inner, is_training in modes:
            inner.training = is_training
        for model, implementation in zip(models, before, strict=True):
            model.set_attn_implementation(implementation)


def save_graph(model: onnx_ir.Model, path: Path, *, stored_in: Path | None = None) -> bool:
    """Write a graph and make its folder; large weights go to `<name>.data` next to it.

    Args:
        model: The graph.
        path: Its file.
        stored_in: A finished graph in the same folder, whose weights with the same bytes are used.

    Returns:
        Whether the weights are in a separate file.
    """
    weights = (weight.const_value for weight in model.graph.initializers.values())
    num_bytes = sum(weight.nbytes for weight in weights if weight is not None)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_large = num_bytes > MAX_INLINE_BYTES
    if is_large:
        _move_weights(model, path.with_name(f"{path.name}.data"))
    elif stored_in is not None:
        _read_from(stored_in, model)
    onnx_ir.save(model, path)
    return is_large


def _read_from(stored: Path, model: onnx_ir.Model) -> None:
    """Replace weights whose bytes are in this file by their place in it."""
    content = stored.read_bytes()
    for value in model.graph.initializers.values():
        weight = value.const_value
        if weight is not None and weight.nbytes >= MIN_SHARED_BYTES:
            offset = content.find(weight.tobytes())
            if offset >= 0:
                value.const_value = _external(value, weight, stored, offset)


def _external(
    value: onnx_ir.Value, weight: onnx_ir.TensorProtocol, file: Path, offset: int
) -> onnx_ir.ExternalTensor:
    """Weights that a file next to the graph holds."""
    return onnx_ir.ExternalTensor(
        location=file.name,
        offset=offset,
        length=weight.nbytes,
        dtype=weight.dtype,
        shape=onnx_ir.Shape(weight.numpy().shape),
        name=str(value.name),
        base_dir=file.parent,
    )


def _move_weights(model: onnx_ir.Model, file: Path) -> None:
    """Move a graph's weights to a file next to it; equal tensors are stored once."""
    places: dict[bytes, int] = {}
    with file.open("wb") as stream:
        for value in model.graph.initializers.values():
            weight = value.const_value
            if weight is None or weight.nbytes < MIN_SHARED_BYTES:
                continue
            content = weight.tobytes()
            digest = hashlib.sha256(content).digest()
            if digest not in places:
                places[digest] = -(-stream.tell() // ALIGNMENT) * ALIGNMENT
                stream.seek(places[digest])
                stream.write(content)
                stream.flush()
            value.const_value = _external(value, weight, file, places[digest])
