"""Convert a graph to half precision: matrix products in fp16 or bf16, sums in float32.

Inputs and outputs stay float32. So do operators that add up many numbers or divide by a sum:
LayerNorm, whose variance overflows fp16; softmax and the mask before it, whose smallest number fp16
cannot represent; means; and lengths with their least value, which fp16 cannot represent either.
Position embeddings and everything else that depends on sizes or the mask alone stay float32 too,
and so does the patch embedding: they are little work. The graph is strongly typed, as TensorRT
requires.

The graph may be traced, or read from a package. In a package, weights that fp16 holds exactly are
stored so and widened by a Cast (`model.export.exact`); a graph in fp16 reads what is stored.
"""

from collections.abc import Iterator
from typing import Final

import onnx_ir
from onnx_ir.passes import common

from model.graphs import TAPS, HalfPrecision

HALF_TYPES: Final[dict[HalfPrecision, onnx_ir.DataType]] = {
    "fp16": onnx_ir.DataType.FLOAT16,
    "bf16": onnx_ir.DataType.BFLOAT16,
}
BF16_CONVOLUTION_OPSET: Final = 22
FLOAT: Final = onnx_ir.DataType.FLOAT
FLOAT_OPERATORS: Final = frozenset(
    (
        *("LayerNormalization", "Softmax", "ReduceSum", "ReduceMean", "ReduceL2"),
        *("Div", "Reciprocal", "Pow", "Sqrt"),
    )
)
# Not the attention mask: what is computed of it alone is small and must be exact.
DATA_INPUTS: Final = frozenset(("pixel_values", "input_ids", *TAPS))


def to_half(model: onnx_ir.Model, precision: HalfPrecision) -> None:
    """Change a float32 graph in place to a precision of most operators."""
    _Halving(model, HALF_TYPES[precision]).run()
    convolves = any(node.op_type == "ConvTranspose" for node in model.graph)
    if precision == "bf16" and convolves:
        # Earlier opsets have no bf16 convolutions. All other operators of the graphs are unchanged.
        model.opset_imports[""] = BF16_CONVOLUTION_OPSET
        for function in model.functions.values():
            function.opset_imports[""] = BF16_CONVOLUTION_OPSET
    common.RemoveUnusedNodesPass()(model)


class _Halving:
    """One pass through a graph, in the order of computation."""

    def __init__(self, model: onnx_ir.Model, half: onnx_ir.DataType) -> None:
        self._graph = model.graph
        self._half = half
        self._casts: dict[tuple[onnx_ir.Value, onnx_ir.DataType], onnx_ir.Value] = {}
        self._with_data = set(depending_on_data(model.graph))

    def run(self) -> None:
        for node in list(self._graph):
            if _stored(node) is not None:
                continue
            wanted = self._half if self._is_half(node) else FLOAT
            # The further inputs of a Resize are factors, which are always float32.
            inputs = node.inputs[:1] if node.op_type == "Resize" else node.inputs
            for index, value in enumerate(inputs):
                if value is not None and value.dtype in {FLOAT, self._half}:
                    node.replace_input_with(index, self._as_type(value, wanted, node))
            for output in node.outputs:
                if output.dtype == FLOAT:
                    # Not `dtype`, which would change the type of every clone of this graph.
                    output.type = onnx_ir.TensorType(wanted)
        for index, output in enumerate(self._graph.outputs):
            self._graph.outputs[index] = self._as_float_output(output)

    def _is_half(self, node: onnx_ir.Node) -> bool:
        if node not in self._with_data or node.op_type in FLOAT_OPERATORS:
            return False
        if any(value in self._graph.inputs for value in node.inputs if value is not None):
            return node.op_type == "Gather"
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        if node.op_type == "Clip" and maker is not None and maker.op_type in FLOAT_OPERATORS:
            return False
        users = [user for output in node.outputs for user in output.consumers()]
        return not (node.op_type == "Add" and any(user.op_type == "Softmax" for user in users))

    def _as_type(
        self, value: onnx_ir.Value, wanted: onnx_ir.DataType, before: onnx_ir.Node
    ) -> onnx_ir.Value:
        if value.dtype == wanted:
            return value
        stored = _stored(value.producer())
        if stored is not None and stored.dtype == wanted:
            return stored
        if (value, wanted) not in self._casts:
            if value.is_initializer():
                cast = self._weight(value, wanted)
            else:
                cast = self._cast(value, wanted)
                assert cast.producer() is not None
                self._graph.insert_before(before, cast.producer())  # type: ignore[arg-type]
            self._casts[value, wanted] = cast
        return self._casts[value, wanted]

    def _cast(self, value: onnx_ir.Value, wanted: onnx_ir.DataType) -> onnx_ir.Value:
        node = onnx_ir.node("Cast", [value], {"to": wanted})
        (output,) = node.outputs
        output.name, output.dtype, output.shape = f"{value.name}_cast", wanted, value.shape
        return output

    def _weight(self, value: onnx_ir.Value, wanted: onnx_ir.DataType) -> onnx_ir.Value:
        assert value.const_value is not None
        array = value.const_value.numpy().astype(wanted.numpy())
        weight = onnx_ir.val(f"{value.name}_half", const_value=onnx_ir.tensor(array, dtype=wanted))
        self._graph.register_initializer(weight)
        return weight

    def _as_float_output(self, output: onnx_ir.Value) -> onnx_ir.Value:
        if output.dtype == FLOAT:
            return output
        name, output.name = output.name, f"{output.name}_half"
        cast = self._cast(output, FLOAT)
        cast.name = name
        self._graph.append(cast.producer())  # type: ignore[arg-type]
        return cast


def _stored(node: onnx_ir.Node | None) -> onnx_ir.Value | None:
    """The narrow weights that a Cast widens; None if the node does anything else."""
    if node is None or node.op_type != "Cast" or node.inputs[0] is None:
        return None
    return node.inputs[0] if node.inputs[0].is_initializer() else None


def depending_on_data(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Node]:
    """Yield the nodes whose results depend on the values of the data, not only on its sizes."""
    values = {value for value in graph.inputs if value.name in DATA_INPUTS}
    for node in graph:
        if node.op_type not in {"Shape", "Size"} and any(v in values for v in node.inputs):
            values.update(node.outputs)
            yield node
