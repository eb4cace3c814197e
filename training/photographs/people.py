"""`python -m training.photographs.people TFLITE PACKAGE`: the network that finds people, as ONNX.

It is MediaPipe's selfie segmentation, Apache-2.0 (@mediapipe/selfie_segmentation 0.1.1675465747).
Needs `pip install tflite`, which reads the file's schema.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from model.foreground import SIDE
from model.graphs import FOREGROUND_FILE
from model.package import open_package, write_manifest

_UNARY = {"HARD_SWISH": "HardSwish", "RELU": "Relu", "LOGISTIC": "Sigmoid"}
_BINARY = {"ADD": "Add", "MUL": "Mul"}


class _Converter:
    """Writes the nodes of one TFLite graph, whose arrays are NHWC, as NCHW."""

    def __init__(self, tflite: Any, content: bytes) -> None:
        self._tflite = tflite
        self._model = tflite.Model.GetRootAsModel(content, 0)
        self._graph = self._model.Subgraphs(0)
        kinds = tflite.BuiltinOperator.__dict__.items()
        self._kinds = {number: name for name, number in kinds if isinstance(number, int)}
        self._constants: dict[int, NDArray[np.float16]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def convert(self) -> onnx.ModelProto:
        """The graph: `image` [1, 3, 256, 256] in [0, 1] to `foreground` [1, 1, 256, 256]."""
        for index in range(self._graph.OperatorsLength()):
            self._convert(self._graph.Operators(index))
        (first,), (last,) = self._graph.InputsAsNumpy(), self._graph.OutputsAsNumpy()
        for node in self._nodes:
            node.input[:] = ["image" if name == f"t{first}" else name for name in node.input]
            node.output[:] = ["foreground" if name == f"t{last}" else name for name in node.output]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "people",
            [value("image", onnx.TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
            [value("foreground", onnx.TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
            self._initializers,
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _convert(self, operator: Any) -> None:
        inputs = [int(index) for index in operator.InputsAsNumpy()]
        (output,) = (int(index) for index in operator.OutputsAsNumpy())
        code = self._model.OperatorCodes(operator.OpcodeIndex())
        kind = self._kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        if kind == "DEQUANTIZE":
            tensor = self._graph.Tensors(inputs[0])
            raw = self._model.Buffers(tensor.Buffer()).DataAsNumpy()
            self._constants[output] = raw.view(np.float16).reshape(tensor.ShapeAsNumpy())
        elif kind in _UNARY:
            self._add(_UNARY[kind], [f"t{inputs[0]}"], output)
        elif kind in _BINARY:
            self._add(_BINARY[kind], [f"t{index}" for index in inputs], output)
        elif kind == "AVERAGE_POOL_2D":
            assert self._shape(output)[1:3] == [1, 1]
            self._add("GlobalAveragePool", [f"t{inputs[0]}"], output)
        elif kind == "RESIZE_BILINEAR":
            self._resize(operator, inputs[0], output)
        elif kind in {"CONV_2D", "DEPTHWISE_CONV_2D"}:
            self._convolve(inputs, output, is_depthwise=kind == "DEPTHWISE_CONV_2D")
        else:
            assert code.CustomCode() == b"Convolution2DTransposeBias", kind
            weight_IOhw = self._constants[inputs[1]].transpose(3, 0, 1, 2)
            names = [self._constant(inputs[1], weight_IOhw), self._constant(inputs[2])]
            self._add("ConvTranspose", [f"t{inputs[0]}", *names], output, strides=[2, 2])

    def _resize(self, operator: Any, source: int, output: int) -> None:
        options = self._tflite.ResizeBilinearOptions()
        table = operator.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        mode = "half_pixel" if options.HalfPixelCenters() else "asymmetric"
        mode = "align_corners" if options.AlignCorners() else mode
        size = np.asarray([1, self._shape(output)[3], *self._shape(output)[1:3]], np.int64)
        self._initializers.append(numpy_helper.from_array(size, f"size{output}"))
        inputs = [f"t{source}", "", "", f"size{output}"]
        self._add("Resize", inputs, output, mode="linear", coordinate_transformation_mode=mode)

    def _convolve(self, inputs: list[int], output: int, *, is_depthwise: bool) -> None:
        weight = self._constants[inputs[1]]
        axes = (3, 0, 1, 2) if is_depthwise else (0, 3, 1, 2)
        names = [self._constant(inputs[1], weight.transpose(axes)), self._constant(inputs[2])]
        stride = self._shape(inputs[0])[1] // self._shape(output)[1]
        self._add(
            "Conv",
            [f"t{inputs[0]}", *names],
            output,
            auto_pad="SAME_UPPER",
            strides=[stride, stride],
            group=weight.shape[3] if is_depthwise else 1,
        )

    def _constant(self, index: int, value: NDArray[np.float16] | None = None) -> str:
        array = np.ascontiguousarray(self._constants[index] if value is None else value)
        self._initializers.append(numpy_helper.from_array(array, f"half{index}"))
        cast = helper.make_node(
            "Cast", [f"half{index}"], [f"constant{index}"], to=onnx.TensorProto.FLOAT
        )
        self._nodes.append(cast)
        return f"constant{index}"

    def _shape(self, index: int) -> list[int]:
        return [int(side) for side in self._graph.Tensors(index).ShapeAsNumpy()]

    def _add(self, kind: str, inputs: list[str], output: int, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, [f"t{output}"], **attributes))


def convert(content: bytes, load: Callable[[str], Any] = importlib.import_module) -> bytes:
    """The ONNX file of a TFLite file."""
    converted: bytes = _Converter(load("tflite"), content).convert().SerializeToString()
    return converted


if __name__ == "__main__":
    package = open_package(sys.argv[2])
    (package.path / FOREGROUND_FILE).write_bytes(convert(Path(sys.argv[1]).read_bytes()))
    write_manifest(package.path, package.manifest)
