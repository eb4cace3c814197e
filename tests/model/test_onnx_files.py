"""Weight files and sizes are found wherever a graph can name them, without the onnx library."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from model.onnx_files import check_graph

make = helper.make_model


def graph(nodes: Sequence[onnx.NodeProto] = (), **parts: object) -> onnx.GraphProto:
    made: onnx.GraphProto = helper.make_graph(nodes, "g", [], [])
    for name, value in parts.items():
        getattr(made, name).extend(value)
    return made


def branch(inner: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph())


def places() -> dict[str, onnx.ModelProto]:
    """Models that name the file here.data in each place where a tensor may be."""
    here = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    here.data_location = TensorProto.EXTERNAL
    # The order of the entries, and what stands beside the location, must not matter.
    for key, value in (("offset", "0"), ("location", "here.data"), ("length", "8")):
        here.external_data.add(key=key, value=value)
    inline = helper.make_tensor("inline", TensorProto.FLOAT, [2], [1.0, 2.0])
    inner = graph(initializer=[here])
    constant = helper.make_node("Constant", [], ["c"], value=here)
    sparse = onnx.SparseTensorProto(values=here, dims=[4])
    function, training = make(graph()), make(graph())
    function.functions.append(helper.make_function("d", "f", [], ["c"], [constant], []))
    training.training_info.add().algorithm.CopyFrom(inner)
    return {
        "initializer": make(graph(initializer=[inline, here])),
        "constant": make(graph([constant])),
        "branch": make(graph([branch(inner)])),
        "list of graphs": make(graph([helper.make_node("Odd", [], ["y"], graphs=[inner])])),
        "sparse": make(graph(sparse_initializer=[sparse])),
        "function": function,
        "training": training,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.onnx"


@pytest.mark.parametrize("place", places())
def test_every_place_of_a_tensor_is_searched(place: str, path: Path) -> None:
    path.write_bytes(places()[place].SerializeToString())
    assert check_graph(path, 1000) == {"here.data"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not found</html>",
        places()["initializer"].SerializeToString()[:-3],
        b"\x08" + b"\xff" * 20,  # a number without an end
        b"\x3b\x3c",  # a group
    ],
)
def test_an_incomplete_graph_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.onnx is .*not an? (complete )?ONNX graph"):
        check_graph(path, 1000)


def test_deeply_nested_graphs_are_refused(path: Path) -> None:
    made = graph()
    for _ in range(25):
        made = graph([branch(made)])
    path.write_bytes(make(made).SerializeToString())
    with pytest.raises(ValueError, match="deep"):
        check_graph(path, 1000)


def test_a_tensor_larger_than_its_files_is_refused(path: Path) -> None:
    declared = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1000, 3])
    values = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[2])
    sparse = onnx.SparseTensorProto(values=values, dims=[3000])
    for parts in ({"initializer": [declared]}, {"sparse_initializer": [sparse]}):
        path.write_bytes(make(graph(**parts)).SerializeToString())
        check_graph(path, 3000)
        with pytest.raises(ValueError, match="a tensor of 3000 values, more than its files hold"):
            check_graph(path, 2999)
