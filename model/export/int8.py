"""Quantise graphs to int8: weights and activations, or rows of a table."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray

from model.export.half import depending_on_data
from model.export.tracing import save_graph, strip_traces
from model.parity.inputs import calibration_images, image_batch

Inputs = dict[str, NDArray[Any]]
FloatArray = NDArray[np.float32]
# Smaller weights are not worth another operator: position grids, patch embeddings of tiny models.
MIN_WEIGHTS: Final = 1024
# Activations that saturation at the ends of a range does without an operator.
CLIPS: Final = frozenset(("Clip", "Relu"))
LARGEST: Final = 127


def symmetric(weights: FloatArray, axis: int) -> tuple[NDArray[np.int8], FloatArray]:
    """Quantise to integers from -127 to 127 and a scale for each channel along an axis."""
    others = tuple(np.delete(np.arange(weights.ndim), axis))
    largest = np.abs(weights).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    return np.rint(weights / scales).astype(np.int8), scales.reshape(-1)


def look_rows_up(gather: onnx_ir.Node, stored: onnx_ir.Value, scales: onnx_ir.Value) -> None:
    """Replace a lookup by one of integers and one of scales; the first stays, without a user.

    Rows are looked up before they are widened; ONNX Runtime would keep the widened table instead.
    """
    indices, (looked_up,) = gather.inputs[1], gather.outputs
    row = _insert(gather, "Gather", [stored, indices], {"axis": 0})
    scale = _insert(gather, "Gather", [scales, indices], {"axis": 0})
    widened = _insert(gather, "Cast", [row], {"to": onnx_ir.DataType.FLOAT})
    product = _insert(gather, "Mul", [widened, scale], {})
    product.type, product.shape = looked_up.type, looked_up.shape
    looked_up.replace_all_uses_with(product)


def constant(graph: onnx_ir.Graph, name: str, array: NDArray[Any]) -> onnx_ir.Value:
    """The initializer of this name, made of an array if there is none."""
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


def quantise(graph: onnx_ir.Model, examples: Iterable[Inputs]) -> onnx_ir.Model:
    """Quantise weights and activations of a float32 graph with ONNX Runtime's tool.

    A network of attention has its products of activations with weights quantised. All is symmetric,
    which TensorRT requires. Float32 remain products of two activations (attention), whose ranges
    change with the image; patch and position embeddings, which are little work; and the value path
    of the last block, which segmentation compares patch by patch.

    A network of convolutions has those quantised, from the first large one on, with the sums and
    ReLU6 between them; earlier ones have few weights, and their rounding changes most. Products of
    matrices, which describe cells there, stay. Activations are unsigned, which ONNX Runtime needs
    for speed on x86 (signed ones took twice the time of unsigned ones) and TensorRT refuses.

    Args:
        graph: A traced graph; nodes that stay in float32 get their own weights in it.
        examples: Inputs to measure the ranges of activations with.
    """
    from onnxruntime.quantization import (  # noqa: PLC0415 - optional, and slow to import
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    convolutions = _convolutions(graph)
    chosen = convolutions or _products(graph)
    options: dict[str, Any] = {"WeightSymmetric": True, "ActivationSymmetric": not convolutions}
    if convolutions:
        options["TensorQuantOverrides"] = dict(_narrow_weights(convolutions))
    rest = iter(examples)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        is_large = save_graph(graph, before)
        quantize_static(
            before,
            after,
            SimpleNamespace(get_next=lambda: next(rest, None)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted({node.op_type for node in chosen}),
            nodes_to_quantize=[str(node.name) for node in chosen],
            per_channel=True,
            activation_type=QuantType.QUInt8 if convolutions else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
            use_external_data_format=is_large,
            extra_options=options,
        )
        # Loads external weights too, before the folder is deleted.
        quantised = onnx_ir.serde.deserialize_model(onnx.load(after))
    strip_traces(quantised)
    return quantised


def calibration_inputs(native: int, unit: int) -> Iterator[Inputs]:
    """Yield images one by one: native squares, and oblongs with half of their area."""
    images = calibration_images()
    half = max(unit, native // 2 // unit * unit)
    shapes = [(native, native), (half, native), (native, half)]
    for index in range(len(images)):
        size_hw = shapes[index % len(shapes)]
        yield {"pixel_values": image_batch(images, size_hw, batch=1, first=index)}


def _convolutions(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    """Convolutions from the first large one on, with the sums and activations between them."""
    chosen: dict[onnx_ir.Node, None] = {}
    early: set[onnx_ir.Value] = set()
    for node in model.graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is not None and weight.const_value is not None:
            # The first of all convolves pixels. A second pass over another size shares weights.
            if not chosen and (not early or weight.const_value.size < MIN_WEIGHTS):
                early.add(weight)
            if weight not in early:
                chosen[node] = None
        elif (node.op_type in CLIPS and makers[0] in chosen) or (
            node.op_type == "Add" and all(maker in chosen for maker in makers)
        ):
            chosen[node] = None
    return list(chosen)


def _narrow_weights(nodes: Iterable[onnx_ir.Node]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Options of weights that get 7 bits: kernels of depthwise convolutions widen first.

    Without VNNI, x86 processors add two products of an unsigned and a signed byte in 16 bits, which
    overflow with 8-bit weights (cosines fell from 0.98 to 0.85).
    """
    for node in nodes:
        group = node.attributes.get("group")
        if node.op_type == "Conv" and (group is None or group.as_int() == 1):
            assert node.inputs[1] is not None
            yield str(node.inputs[1].name), [{"axis": 0, "reduce_range": True}]


def _products(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    """Products of activations with weights; the others get weights of their own.

    The tool would quantise weights that they share for all.
    """
    with_data, wanted = set(depending_on_data(model.graph)), set[onnx_ir.Node]()
    outputs = (out for out in model.graph.outputs if out.name != "value_embeddings")
    waiting = [node for value in outputs if (node := value.producer()) is not None]
    while waiting:
        node = waiting.pop()
        if node not in wanted:
            wanted.add(node)
            waiting += node.predecessors()
    products = [
        (node, weight)
        for node in model.graph
        if node.op_type == "MatMul"
        and (weight := node.inputs[1])
        and weight.const_value is not None
    ]
    chosen = [node for node, _ in products if node in with_data and node in wanted]
    for node, weight in products:
        if node not in chosen and len(weight.uses()) > 1:
            own = onnx_ir.val(f"{weight.name}_float", const_value=weight.const_value)
            if own.name not in model.graph.initializers:
                model.graph.register_initializer(own)
            node.replace_input_with(1, model.graph.initializers[str(own.name)])
    return chosen
