"""Weight files and sizes are found wherever a graph can name them, without the onnx library."""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from model.onnx_files import MAX_FILLED_VALUES, check_graph

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


def shape(values: Sequence[int], *, is_raw: bool = False) -> TensorProto:
    raw = b"".join(value.to_bytes(8, "little") for value in values)
    content = raw if is_raw else values
    return helper.make_tensor("s", TensorProto.INT64, [len(values)], content, raw=is_raw)


def node(operator: str, *inputs: str) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, ["y"])


FILL = node("ConstantOfShape", "s")


def constant(half: Sequence[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["s"], value=shape(half))


# Graphs that fill twice the values of a constant shape, in each way to write one.
FILLING: dict[str, Callable[[list[int]], onnx.GraphProto]] = {
    "initializer": lambda half: graph([FILL], initializer=[shape(half)]),
    "raw": lambda half: graph([FILL], initializer=[shape(half, is_raw=True)]),
    "constant": lambda half: graph([constant(half), FILL]),
    "integers": lambda half: graph(
        [FILL, helper.make_node("Constant", [], ["s"], value_ints=half)]
    ),
    "branch": lambda half: graph([branch(graph([constant(half), FILL]))]),
    "expand": lambda half: graph([constant(half), node("Expand", "x", "s")]),
    "tile": lambda half: graph([constant(half), node("Tile", "x", "s")]),
    "three times": lambda half: graph([constant([2, half[1] // 3 + 1]), *[FILL] * 3]),
}


@pytest.mark.parametrize("way", FILLING)
def test_a_graph_that_fills_memory_is_refused(way: str, path: Path) -> None:
    path.write_bytes(make(FILLING[way]([2, MAX_FILLED_VALUES // 4])).SerializeToString())
    check_graph(path, 1000)
    path.write_bytes(make(FILLING[way]([2, MAX_FILLED_VALUES // 2 + 1])).SerializeToString())
    with pytest.raises(ValueError, match="from constant shapes, at most 67108864 are accepted"):
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
