"""The weight files that an ONNX graph names and the sizes it declares, without the `onnx` package.

Serving checks them before a runtime opens the files, and does not install `onnx`. Only the fields
that lead to tensors are read; weights are skipped.

Source: field numbers from onnx.proto (ONNX IR 10).
"""

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from model.protobuf_wire import BYTES, Buffer, read_fields, read_varints

# Graphs nest in nodes, and nodes in graphs; our exports nest two deep at most.
MAX_DEPTH: Final = 64

# For each message, the fields that lead to tensors, and to which message.
ROUTES: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        **{5: "tensor", 10: "tensor", 6: "graph", 11: "graph"},
        **{22: "sparse", 23: "sparse"},
    },
    "sparse": {1: "tensor", 2: "tensor"},
}
ENTRY_KEY, ENTRY_VALUE = 1, 2
# The sizes of each kind of tensor, and where the data of the first kind lies.
DIMS: Final[Mapping[str, int]] = {"tensor": 1, "sparse": 3}
EXTERNAL_DATA: Final = 13
# A tensor has few dimensions.
MAX_DIMS_BYTES: Final = 10 * 64


def check_graph(path: Path, max_values: int) -> set[str]:
    """Check that a graph declares no tensor larger than its files, and find its weight files.

    Args:
        path: The graph.
        max_values: Most values of one tensor.

    Returns:
        The external weight files that it names, relative to the graph's folder.

    Raises:
        ValueError: A declared size is too large, or the file is not a complete ONNX graph.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty, so it is not an ONNX graph")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        graph = _Graph(content)
        try:
            graph.read(slice(0, len(content)), "model", 0)
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a complete ONNX graph: {error}") from error
    if graph.largest > max_values:
        raise ValueError(
            f"{path} declares a tensor of {graph.largest} values, more than its files hold"
        )
    return graph.locations


def _bytes_fields(buffer: Buffer, span: slice) -> Iterator[tuple[int, slice]]:
    for number, wire_type, value in read_fields(buffer, span.start, span.stop):
        if wire_type == BYTES and isinstance(value, slice):
            yield number, value


class _Graph:
    """Weight files and the size of the largest tensor that a graph and its inner graphs name."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self.locations: set[str] = set()
        self.largest = 0

    def read(self, span: slice, message: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"messages are nested more than {MAX_DEPTH} deep")
        if message in DIMS:
            self.largest = max(self.largest, self._num_values(span, DIMS[message]))
        routes = ROUTES.get(message, {})
        for number, inner in _bytes_fields(self._buffer, span):
            if number in routes:
                self.read(inner, routes[number], depth + 1)
            elif message == "tensor" and number == EXTERNAL_DATA:
                self._read_entry(inner)

    def _read_entry(self, span: slice) -> None:
        """Read a key and value of what describes a tensor's data."""
        keys, values = set(), set()
        for number, value in _bytes_fields(self._buffer, span):
            if number == ENTRY_KEY:
                keys.add(self._buffer[value])
            elif number == ENTRY_VALUE:
                values.add(self._buffer[value].decode())
        # Readers differ in which of two equal fields counts, so all of them are kept.
        if b"location" in keys:
            self.locations |= values

    def _num_values(self, span: slice, wanted: int) -> int:
        """The product of a tensor's dimensions, packed or not; they are read as unsigned."""
        found: list[int] = []
        for number, _, value in read_fields(self._buffer, span.start, span.stop):
            if number != wanted:
                continue
            if isinstance(value, int):
                found.append(value)
            elif value.stop - value.start > MAX_DIMS_BYTES:
                raise ValueError("a tensor has too many dimensions")
            else:
                found += read_varints(self._buffer, value.start, value.stop)
        return math.prod(found)
