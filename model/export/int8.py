"""Quantise graphs to int8: weights alone, or weights and activations."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from model.export.calibration import Inputs
from model.export.half import depending_on_data
from model.export.tracing import save_graph, strip_traces

# Stores a graph's weights in 8 bits: a whole number per weight and a scale per output channel.
#
# What is computed stays float32. Runtimes either widen the weights when they load the graph, so
# that
# the file alone is small, or keep them small and widen them as they multiply. The operators are
# standard ones: DequantizeLinear before products, and for a table of embeddings a lookup of whole
# numbers and one of scales, so that the table itself is never widened.

FloatArray = NDArray[np.float32]
# Input and axis of output channels of the weight, by operator.
PRODUCTS: Final[dict[str, tuple[int, int]]] = {
    "MatMul": (1, -1),
    "Conv": (1, 0),
    "ConvTranspose": (1, 1),
}
# Smaller ones are not worth another operator: position grids, patch embeddings of tiny models.
MIN_WEIGHTS: Final = 1024
LARGEST: Final = 127


def store_weights_in_8_bits(model: onnx_ir.Model) -> None:
    """Change a float32 graph in place.

    Convolutions that read the pixels stay as they are, and so do products of two computed things.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Gather":
            _store_table(graph, node)
        elif node.op_type in PRODUCTS and node.inputs[0] not in graph.inputs:
            _store_product(graph, node)
    common.RemoveUnusedNodesPass()(model)


def symmetric(weights: FloatArray, axis: int) -> tuple[NDArray[np.int8], FloatArray]:
    """Whole numbers from -127 to 127, and what to multiply them by, one scale for each channel.

    Args:
        weights: Of any shape.
        axis: Of the channels; scales have its length.
    """
    others = tuple(np.delete(np.arange(weights.ndim), axis))
    largest = np.abs(weights).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    return np.rint(weights / scales).astype(np.int8), scales.reshape(-1)


def _store_product(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    index, axis = PRODUCTS[node.op_type]
    value = node.inputs[index]
    weights = _large_weights(value)
    if value is None or weights is None or weights.ndim < 2:
        return
    axis %= weights.ndim
    numbers, scales = symmetric(weights, axis)
    stored = [_constant(graph, value, "int8", numbers), _constant(graph, value, "scale", scales)]
    widened = _insert(node, "DequantizeLinear", stored, {"axis": axis})
    node.replace_input_with(index, widened)


def _store_table(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Look up rows of whole numbers and their scales, and multiply."""
    table, indices = node.inputs
    rows = _large_weights(table)
    if table is None or rows is None or rows.ndim != 2:
        return
    numbers, scales = symmetric(rows, axis=0)
    stored = _constant(graph, table, "int8", numbers)
    stored_scales = _constant(graph, table, "scale", scales[:, None])
    row = _insert(node, "Gather", [stored, indices], {"axis": 0})
    scale = _insert(node, "Gather", [stored_scales, indices], {"axis": 0})
    widened = _insert(node, "Cast", [row], {"to": onnx_ir.DataType.FLOAT})
    product = _insert(node, "Mul", [widened, scale], {})
    product.dtype, product.shape = onnx_ir.DataType.FLOAT, node.outputs[0].shape
    node.outputs[0].replace_all_uses_with(product)


def _large_weights(value: onnx_ir.Value | None) -> FloatArray | None:
    if value is None or value.const_value is None or value.dtype != onnx_ir.DataType.FLOAT:
        return None
    weights: FloatArray = value.const_value.numpy()
    return weights if weights.size >= MIN_WEIGHTS else None


def _constant(
    graph: onnx_ir.Graph, value: onnx_ir.Value, kind: str, array: NDArray[Any]
) -> onnx_ir.Value:
    name = f"{value.name}_{kind}"
    if name not in graph.initializers:
        graph.register_initializer(onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name)))
    return graph.initializers[name]


def _insert(
    before: onnx_ir.Node,
    operator: str,
    inputs: Sequence[onnx_ir.Value | None],
    attributes: dict[str, Any],
) -> onnx_ir.Value:
    node = onnx_ir.node(operator, inputs, attributes)
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return node.outputs[0]


# Quantises a graph to 8 bits, weights and activations, with ranges seen on real inputs.
#
# ONNX Runtime's own tool does it: pairs of QuantizeLinear and DequantizeLinear around the products
# of
# activations with weights, which ONNX Runtime, OpenVINO and TensorRT all turn into products of
# whole
# numbers. Weights have a scale per output channel, activations one for all, and zero is zero, which
# TensorRT insists on.
#
# Left in float32 are products of two activations (attention), whose ranges change with the image;
# the patch embedding and the position embeddings, which are little work; and the last block's value
# path, which segmentation compares patch by patch and which is one block's work.


def quantise(graph: onnx_ir.Model, examples: Iterable[Inputs]) -> onnx_ir.Model:
    """Quantise a float32 graph.

    Args:
        graph: As traced; what is left in float32 gets weights of its own in it.
        examples: Inputs whose activations give the ranges.
    """
    from onnxruntime.quantization import (  # noqa: PLC0415 - a runtime; only who quantises waits
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    left_out = list(_left_out(graph))
    _give_own_weights(left_out)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        is_large = save_graph(graph, before)
        quantize_static(
            before,
            after,
            _Examples(examples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[str(node.name) for node in left_out],
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
            use_external_data_format=is_large,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": True},
        )
        # Read whole, since the folder goes.
        quantised = onnx_ir.serde.deserialize_model(onnx.load(after))
    strip_traces(quantised)
    return quantised


class _Examples:
    """What ONNX Runtime's tool reads its examples from."""

    def __init__(self, examples: Iterable[Inputs]) -> None:
        self._rest = iter(examples)

    def get_next(self) -> Inputs | None:
        return next(self._rest, None)


def _left_out(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    with_data = set(depending_on_data(model.graph))
    wanted = _ancestors([out for out in model.graph.outputs if out.name != "value_embeddings"])
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        is_product = weight is not None and weight.const_value is not None
        if not is_product or node not in with_data or node not in wanted:
            yield node


def _give_own_weights(nodes: Sequence[onnx_ir.Node]) -> None:
    """Part weights from nodes that share them, which the tool would quantise for all."""
    for node in nodes:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.const_value is not None and len(weight.uses()) > 1:
            own = onnx_ir.val(f"{weight.name}_float", const_value=weight.const_value)
            assert node.graph is not None
            if own.name not in node.graph.initializers:
                node.graph.register_initializer(own)
            node.replace_input_with(1, node.graph.initializers[str(own.name)])


def _ancestors(outputs: Sequence[onnx_ir.Value]) -> set[onnx_ir.Node]:
    found: set[onnx_ir.Node] = set()
    waiting = [node for value in outputs if (node := value.producer()) is not None]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [its for value in node.inputs if value and (its := value.producer())]
    return found
