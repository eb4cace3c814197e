"""Stores a graph's weights in 8 bits: a whole number per weight and a scale per output channel.

What is computed stays float32. Runtimes either widen the weights when they load the graph, so that
the file alone is small, or keep them small and widen them as they multiply. The operators are
standard ones: DequantizeLinear before products, and for a table of embeddings a lookup of whole
numbers and one of scales, so that the table itself is never widened.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes import common

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
