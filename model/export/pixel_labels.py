"""Write the graph of `model.pixel_labels`: `python -m model.export.pixel_labels`.

It is a file of the program, since the service has no library that makes graphs.
"""

import onnx
from onnx import TensorProto, helper

from model.pixel_labels import COSINES, LABELS, PIXEL_LABELS_FILE
from model.reduction import ROWS_INPUT

# The last one whose ArgMax every ONNX Runtime computes with CUDA.
OPSET = 11
IR_VERSION = 6


def pixel_labels_graph() -> onnx.ModelProto:
    """The graph; values keep the classes on the last axis, which CUDA's ArgMax reads fastest."""
    node = helper.make_node
    nodes = [
        # Lengths divide the cosines instead of the patches, which are wider.
        node("Mul", [ROWS_INPUT, ROWS_INPUT], ["square_ND"]),
        node("ReduceSum", ["square_ND"], ["square_N1"], axes=[1], keepdims=1),
        node("Sqrt", ["square_N1"], ["length_N1"]),
        node("Max", ["length_N1", "tiny"], ["divisor_N1"]),
        node("Gemm", [ROWS_INPUT, "classes_KD"], ["product_NK"], transB=1),
        node("Div", ["product_NK", "divisor_N1"], [COSINES]),
        node("Pad", [COSINES, "one_column", "floor"], ["value_NV"], mode="constant"),
        node("Reshape", ["value_NV", "shape_hwV"], ["value_hwV"]),
        node("MatMul", ["across_Ww", "value_hwV"], ["wide_hWV"]),
        node("Reshape", ["wide_hWV", "one_row"], ["wide_h"]),
        node("MatMul", ["down_Hh", "wide_h"], ["tall_H"]),
        node("Reshape", ["tall_H", "shape_HWV"], ["value_HWV"]),
        node("ArgMax", ["value_HWV"], ["winner_HW"], axis=2, keepdims=0),
        node("Gather", ["label_V", "winner_HW"], [LABELS]),
    ]
    make, number = helper.make_tensor_value_info, TensorProto.FLOAT
    inputs = [
        make(ROWS_INPUT, number, ["N", "D"]),
        make("classes_KD", number, ["K", "D"]),
        make("floor", number, []),
        make("down_Hh", number, ["H", "h"]),
        make("across_Ww", number, ["W", "w"]),
        make("shape_hwV", TensorProto.INT64, [3]),
        make("shape_HWV", TensorProto.INT64, [3]),
        make("label_V", TensorProto.UINT8, ["V"]),
    ]
    constants = [
        helper.make_tensor("tiny", number, [], [1e-12]),
        helper.make_tensor("one_column", TensorProto.INT64, [4], [0, 0, 0, 1]),
        helper.make_tensor("one_row", TensorProto.INT64, [2], [0, -1]),
    ]
    outputs = [make(LABELS, TensorProto.UINT8, ["H", "W"]), make(COSINES, number, ["N", "K"])]
    graph = helper.make_graph(nodes, "pixel_labels", inputs, outputs, constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    PIXEL_LABELS_FILE.write_bytes(pixel_labels_graph().SerializeToString(deterministic=True))
