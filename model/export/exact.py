"""Store the weights of a float32 graph in fewer bytes, if those hold them exactly.

A package that must be small has its encoder's weights rounded first, by `round_weights`, and is
evaluated, exported and compared as that encoder. The graph then computes in float32 what the
encoder computes: the parity gate's limits for float32 hold, and no precision is needed besides.
"""

from typing import Any, Final, Literal

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.export.int8 import LARGEST, MIN_WEIGHTS, FloatArray, constant, look_rows_up, symmetric

Rounding = Literal["fp16", "int8_tables"]
# A scale has 8 significant bits and an integer 7, so these bits of a rounded weight are zero.
SCALE_BITS: Final = 8
ZERO_BITS: Final = 0x1FF
# Names of what is stored in place of weights.
STORED: Final = "_stored"
SCALE: Final = "_scale"


@torch.no_grad()
def round_weights(module: nn.Module, kind: Rounding) -> None:
    """Round a module's matrices, kernels and tables in place, so that the graph can store them so.

    Fold a batch normalisation into its convolution before: the exporter multiplies the two.

    Args:
        module: Such as `Encoder.text`.
        kind: "fp16", half of the bytes; "int8_tables" also rounds tables of embeddings to int8 with
            a scale for each row, a quarter.
    """
    tables = [part.weight for part in module.modules() if isinstance(part, nn.Embedding)]
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype == torch.float32 and tensor.ndim > 1 and tensor.numel() >= MIN_WEIGHTS:
            is_table = kind == "int8_tables" and any(tensor is table for table in tables)
            tensor.copy_(_on_grid(tensor) if is_table else tensor.half().float())


def _on_grid(weights: Tensor) -> Tensor:
    largest = weights.abs().amax(dim=tuple(range(1, weights.ndim)), keepdim=True)
    mantissa, exponent = torch.frexp(torch.where(largest > 0, largest / LARGEST, 1.0))
    scale = torch.ldexp((mantissa * 2**SCALE_BITS).round() / 2**SCALE_BITS, exponent)
    # The largest is 127, from which `symmetric` finds the same scale again.
    return (weights / scale).round().clamp(-LARGEST, LARGEST) * scale


def store_exactly(model: onnx_ir.Model) -> None:
    """Store each large float32 weight as fp16, or a table as int8 with scales, if it is exact.

    A runtime widens the weights once, when it loads the graph. Only tables become int8: OpenVINO
    2026.4 keeps the int8 weights of a matrix product as they are, and with two streams such a graph
    gave wrong vectors (differences up to 1.1 between unit vectors; none with one stream).
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        weights = value.const_value
        if weights is None or value.dtype != onnx_ir.DataType.FLOAT or weights.size < MIN_WEIGHTS:
            continue
        is_table = all(_looks_up_rows(use.node, use.idx) for use in value.uses())
        stored = _narrowed(weights.numpy(), is_table=is_table)
        if stored is None:
            continue
        numbers, scales = stored
        if scales is None:
            _widen(graph, value, numbers)
        else:
            stored_as = constant(graph, f"{value.name}{STORED}", numbers)
            scale_as = constant(graph, f"{value.name}{SCALE}", scales)
            for use in list(value.uses()):
                look_rows_up(use.node, stored_as, scale_as)
                graph.remove(use.node, safe=True)
            del graph.initializers[str(value.name)]


def _looks_up_rows(node: onnx_ir.Node, index: int) -> bool:
    axis = node.attributes.get("axis")
    return node.op_type == "Gather" and index == 0 and (axis is None or axis.as_int() == 0)


def _narrowed(
    weights: FloatArray, *, is_table: bool
) -> tuple[NDArray[Any], FloatArray | None] | None:
    """Numbers and scales whose product is the weights, or None."""
    if np.any(np.ascontiguousarray(weights).view(np.uint32) & ZERO_BITS):
        return None
    if is_table:
        numbers, scales = symmetric(weights, 0)
        if np.array_equal(numbers * scales[:, None], weights):
            return numbers, scales[:, None]
    with np.errstate(over="ignore"):
        half = weights.astype(np.float16)
    return (half, None) if np.array_equal(half.astype(np.float32), weights) else None


def _widen(graph: onnx_ir.Graph, value: onnx_ir.Value, numbers: NDArray[Any]) -> None:
    stored = constant(graph, f"{value.name}{STORED}", numbers)
    wide = onnx_ir.node("Cast", [stored], {"to": value.dtype})
    wide.outputs[0].type, wide.outputs[0].shape = value.type, value.shape
    graph.insert_before(graph[0], wide)
    value.replace_all_uses_with(wide.outputs[0])
    del graph.initializers[str(value.name)]
