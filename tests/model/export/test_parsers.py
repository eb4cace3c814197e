"""TensorRT's parser accepts every graph; that of the RTX edition's wheel needs no GPU."""

import os
from pathlib import Path
from typing import Any

import onnx
import pytest

from model.export.graph_writer import PARTS
from model.graphs import Part, Precision, graph_file

EVERY = [(part, precision) for precision in PARTS for part in sorted(PARTS[precision])]


@pytest.fixture(scope="module")
def tensorrt() -> Any:
    try:
        import tensorrt_rtx_bindings  # noqa: PLC0415 - not for every platform
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("tensorrt-rtx-cu13-libs has no build for this platform")
    return tensorrt_rtx_bindings


def parse(tensorrt: Any, path: Path) -> tuple[Any, list[str]]:
    """The network of a graph, and the parser's errors."""
    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.INTERNAL_ERROR))
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, builder.logger)
    parser.parse_from_file(str(path))
    return network, [parser.get_error(index).desc() for index in range(parser.num_errors)]


@pytest.mark.parametrize(("part", "precision"), EVERY)
def test_every_graph_parses(
    tensorrt: Any, tiny_graphs: Path, part: Part, precision: Precision
) -> None:
    path = tiny_graphs / graph_file(part, precision)
    network, errors = parse(tensorrt, path)
    assert not errors
    outputs = [network.get_output(index).name for index in range(network.num_outputs)]
    graph = onnx.load(path, load_external_data=False).graph
    assert outputs == [value.name for value in graph.output]
    kinds = {network.get_layer(index).type for index in range(network.num_layers)}
    # TensorRT itself has no plugins.
    assert not any("PLUGIN" in kind.name for kind in kinds)
