"""External weights are found wherever a graph can name them, by bytes alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model.onnx_files import external_files
from model.package import BUNDLED_FOLDER


def tensor(location: str, name: str = "w") -> TensorProto:
    """A tensor whose data lies in another file."""
    proto = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    proto.data_location = TensorProto.EXTERNAL
    # The order of the entries, and what stands beside the location, must not matter.
    for key, value in (("offset", "0"), ("location", location), ("length", "8")):
        proto.external_data.add(key=key, value=value)
    return proto


def graph(nodes: Sequence[onnx.NodeProto] = (), **parts: object) -> onnx.GraphProto:
    made: onnx.GraphProto = helper.make_graph(nodes, "g", [], [])
    for name, value in parts.items():
        getattr(made, name).extend(value)
    return made


def in_initializer() -> onnx.ModelProto:
    inline = helper.make_tensor("inline", TensorProto.FLOAT, [2], [1.0, 2.0])
    return helper.make_model(graph(initializer=[inline, tensor("here.data")]))


def in_constant() -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["c"], value=tensor("here.data"))
    return helper.make_model(graph(nodes=[node]))


def in_branch() -> onnx.ModelProto:
    branch = graph(initializer=[tensor("here.data")])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=graph())
    return helper.make_model(graph(nodes=[node]))


def in_list_of_graphs() -> onnx.ModelProto:
    inner = graph(initializer=[tensor("here.data")])
    return helper.make_model(graph(nodes=[helper.make_node("Odd", [], ["y"], graphs=[inner])]))


def in_sparse() -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(values=tensor("here.data"), dims=[4])
    return helper.make_model(graph(sparse_initializer=[sparse]))


def in_function() -> onnx.ModelProto:
    model = helper.make_model(graph())
    node = helper.make_node("Constant", [], ["c"], value=tensor("here.data"))
    model.functions.append(helper.make_function("d", "f", [], ["c"], [node], []))
    return model


def in_training() -> onnx.ModelProto:
    model = helper.make_model(graph())
    model.training_info.add().algorithm.CopyFrom(graph(initializer=[tensor("here.data")]))
    return model


PLACES = [
    *(in_initializer, in_constant, in_branch, in_list_of_graphs),
    *(in_sparse, in_function, in_training),
]


@pytest.mark.parametrize("make", PLACES)
def test_every_place_for_a_tensor_is_looked_at(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(make().SerializeToString())
    assert external_files(path) == {"here.data"}


def field(number: int, content: bytes) -> bytes:
    """A protobuf field of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def test_what_is_named_twice_counts_twice(tmp_path: Path) -> None:
    # Readers of protobuf join parts of a message, and of a field that comes twice take the last.
    entry = field(1, b"location") + field(2, b"first.data") + field(2, b"last.data")
    one = field(7, field(5, field(13, entry)))
    path = tmp_path / "a.onnx"
    path.write_bytes(one + in_constant().SerializeToString())
    assert external_files(path) == {"first.data", "last.data", "here.data"}


def test_what_the_library_splits_off_is_found(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones(2048, np.float32), "w")
    model = helper.make_model(graph(initializer=[weights]))
    onnx.save_model(
        model, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0
    )
    assert external_files(tmp_path / "a.onnx") == {"a.data"}


def test_the_bundled_graphs_are_whole() -> None:
    for name in ("vision_model.onnx", "text_model.onnx"):
        assert external_files(BUNDLED_FOLDER / "onnx" / name) == set()


@pytest.mark.parametrize("name", ["empty", "text", "cut", "endless", "group"])
def test_what_is_no_whole_graph_is_refused(name: str, tmp_path: Path) -> None:
    whole = in_initializer().SerializeToString()
    contents = {
        "empty": b"",
        "text": b"<html>not found</html>",
        "cut": whole[:-3],
        "endless": b"\x08" + b"\xff" * 20,
        "group": b"\x3b\x3c",
    }
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(contents[name])
    with pytest.raises(ValueError, match=rf"{name}\.onnx is .*not an? (complete )?ONNX graph"):
        external_files(path)


def test_graphs_in_graphs_without_end_are_refused(tmp_path: Path) -> None:
    made = graph()
    for _ in range(25):
        made = graph(nodes=[helper.make_node("If", ["x"], ["y"], then_branch=made)])
    path = tmp_path / "deep.onnx"
    path.write_bytes(helper.make_model(made).SerializeToString())
    with pytest.raises(ValueError, match="deep"):
        external_files(path)
