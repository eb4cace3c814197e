"""External weights are found wherever a graph can name them, without the onnx library."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from model.onnx_files import MAX_FILLED_VALUES, check_declared_sizes, external_files


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


def shape(values: Sequence[int], *, is_raw: bool = False) -> TensorProto:
    raw = b"".join(value.to_bytes(8, "little") for value in values)
    content = raw if is_raw else values
    return helper.make_tensor("s", TensorProto.INT64, [len(values)], content, raw=is_raw)


def filling(num_values: int) -> dict[str, onnx.ModelProto]:
    """Graphs that fill so many values from a constant shape, in each way to write one."""
    half, make = [2, num_values // 2], helper.make_model
    fill = helper.make_node("ConstantOfShape", ["s"], ["y"])
    by_tensor = helper.make_node("Constant", [], ["s"], value=shape(half))
    by_integers = helper.make_node("Constant", [], ["s"], value_ints=half)
    inner = graph([by_tensor, fill])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph())
    return {
        "initializer": make(graph([fill], initializer=[shape(half)])),
        "raw": make(graph([fill], initializer=[shape(half, is_raw=True)])),
        "constant": make(graph([by_tensor, fill])),
        "integers": make(graph([fill, by_integers])),
        "branch": make(graph([branch])),
        "expand": make(graph([by_tensor, helper.make_node("Expand", ["x", "s"], ["y"])])),
        "tile": make(graph([by_tensor, helper.make_node("Tile", ["x", "s"], ["y"])])),
        "many": make(graph([by_tensor, *[fill] * 3])),
        "many dimensions": make(graph([fill], initializer=[shape([1] * 70 + half)])),
    }


@pytest.mark.parametrize("way", filling(2))
def test_a_graph_that_fills_memory_is_refused(way: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    if way != "many dimensions":
        path.write_bytes(filling(MAX_FILLED_VALUES // 4)[way].SerializeToString())
        check_declared_sizes(path, 1000)
    more = MAX_FILLED_VALUES // 2 if way == "many" else MAX_FILLED_VALUES + 2
    path.write_bytes(filling(more)[way].SerializeToString())
    with pytest.raises(ValueError, match="from constant shapes, at most 67108864 are accepted"):
        check_declared_sizes(path, 1000)


def test_a_tensor_larger_than_its_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    declared = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1000, 3])
    values = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[2])
    sparse = onnx.SparseTensorProto(values=values, dims=[3000])
    for parts in ({"initializer": [declared]}, {"sparse_initializer": [sparse]}):
        path.write_bytes(helper.make_model(graph(**parts)).SerializeToString())
        check_declared_sizes(path, 3000)
        with pytest.raises(ValueError, match="a tensor of 3000 values, more than its files hold"):
            check_declared_sizes(path, 2999)
