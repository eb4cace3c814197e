"""Quantises a graph to 8 bits, weights and activations, with ranges seen on real inputs.

ONNX Runtime's own tool does it: pairs of QuantizeLinear and DequantizeLinear around the products of
activations with weights, which ONNX Runtime, OpenVINO and TensorRT all turn into products of whole
numbers. Weights have a scale per output channel, activations one for all, and zero is zero, which
TensorRT insists on.

Left in float32 are products of two activations (attention), whose ranges change with the image;
the patch embedding and the position embeddings, which are little work; and the last block's value
path, which segmentation compares patch by patch and which is one block's work.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir

from model.export.calibration import Inputs
from model.export.half import depending_on_data
from model.export.saving import save_graph
from model.export.tracing import strip_traces


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
