"""External weights are found wherever a graph can name them, without the onnx library."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from model.onnx_files import external_files


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


def places() -> dict[str, onnx.ModelProto]:
    """Models that name the file here.data in each place where a tensor may be."""
    here, make = tensor("here.data"), helper.make_model
    inline = helper.make_tensor("inline", TensorProto.FLOAT, [2], [1.0, 2.0])
    inner = graph(initializer=[here])
    constant = helper.make_node("Constant", [], ["c"], value=here)
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph())
    sparse = onnx.SparseTensorProto(values=here, dims=[4])
    function, training = make(graph()), make(graph())
    function.functions.append(helper.make_function("d", "f", [], ["c"], [constant], []))
    training.training_info.add().algorithm.CopyFrom(inner)
    return {
        "initializer": make(graph(initializer=[inline, here])),
        "constant": make(graph(nodes=[constant])),
        "branch": make(graph(nodes=[branch])),
        "list of graphs": make(graph(nodes=[helper.make_node("Odd", [], ["y"], graphs=[inner])])),
        "sparse": make(graph(sparse_initializer=[sparse])),
        "function": function,
        "training": training,
    }


@pytest.mark.parametrize("place", places())
def test_every_place_of_a_tensor_is_searched(place: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(places()[place].SerializeToString())
    assert external_files(path) == {"here.data"}


def field(number: int, content: bytes) -> bytes:
    """A protobuf field of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def test_both_values_of_a_repeated_field_count(tmp_path: Path) -> None:
    # Readers of protobuf join parts of a message, and of a field that comes twice take the last.
    entry = field(1, b"location") + field(2, b"first.data") + field(2, b"last.data")
    one = field(7, field(5, field(13, entry)))
    path = tmp_path / "a.onnx"
    path.write_bytes(one + places()["constant"].SerializeToString())
    assert external_files(path) == {"first.data", "last.data", "here.data"}


@pytest.mark.parametrize("name", ["empty", "text", "cut", "endless", "group"])
def test_an_incomplete_graph_is_refused(name: str, tmp_path: Path) -> None:
    whole = places()["initializer"].SerializeToString()
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


def test_deeply_nested_graphs_are_refused(tmp_path: Path) -> None:
    made = graph()
    for _ in range(25):
        made = graph(nodes=[helper.make_node("If", ["x"], ["y"], then_branch=made)])
    path = tmp_path / "deep.onnx"
    path.write_bytes(helper.make_model(made).SerializeToString())
    with pytest.raises(ValueError, match="deep"):
        external_files(path)
