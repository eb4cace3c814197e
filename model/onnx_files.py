"""The weight files that an ONNX graph names and the sizes it declares, without the `onnx` package.

Serving checks them before a runtime opens the files, and does not install `onnx`. Only the fields
that lead to tensors are read; weights are skipped.

Source: field numbers from onnx.proto (ONNX IR 10).
"""

import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
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
# Fields of a node, an attribute and a tensor.
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR = 1, 2, 4
ATTRIBUTE_TENSOR, ATTRIBUTE_INTS = 5, 8
DIMS, INT64_DATA, TENSOR_NAME, RAW_DATA, EXTERNAL_DATA = 1, 7, 8, 9, 13
SPARSE_DIMS = 3
# Operators whose output has as many values as the product of a shape, and the input with it. A
# runtime computes those of constants while it loads the graph.
FILLING: Final[Mapping[bytes, int]] = {b"ConstantOfShape": 0, b"Expand": 1, b"Tile": 1}
# A shape has few dimensions. What is longer is read as one huge value: weights are no shape.
MAX_SHAPE_BYTES: Final = 10 * 64
HUGE: Final = 2**63 - 1
# Values that such operators may make in one graph, 256 MiB in fp32; our exports make hundreds.
MAX_FILLED_VALUES: Final = 2**26


def check_graph(path: Path, max_values: int) -> set[str]:
    """Check the sizes that a graph declares, and find its weight files.

    It may declare no tensor larger than its files, and fill none from a shape: a graph of 200 bytes
    with a `ConstantOfShape` made the serving process grow past 14 GB. Shapes that it computes are
    not followed.

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
    largest = max(graph.tensor_values, default=0)
    if largest > max_values:
        raise ValueError(f"{path} declares a tensor of {largest} values, more than its files hold")
    num_filled = sum(graph.shapes.get(name, 0) for name in graph.filled)
    if num_filled > MAX_FILLED_VALUES:
        raise ValueError(
            f"{path} fills tensors of {num_filled} values from constant shapes, "
            f"at most {MAX_FILLED_VALUES} are accepted"
        )
    return graph.locations


def _bytes_fields(buffer: Buffer, span: slice) -> Iterator[tuple[int, slice]]:
    for number, wire_type, value in read_fields(buffer, span.start, span.stop):
        if wire_type == BYTES and isinstance(value, slice):
            yield number, value


class _Graph:
    """Weight files and sizes that a graph names, its inner graphs included.

    Attributes:
        locations: The external weight files.
        tensor_values: Number of values of each tensor.
        shapes: For each small constant, the product of its values.
        filled: For each operator of `FILLING`, the name of its shape.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self.locations: set[str] = set()
        self.tensor_values: list[int] = []
        self.shapes: dict[bytes, int] = {}
        self.filled: list[bytes] = []

    def read(self, span: slice, message: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"messages are nested more than {MAX_DEPTH} deep")
        if message == "tensor":
            name, product = self._read_tensor(span)
            self._add_shape(name, product)
        elif message == "node":
            self._read_node(span, depth)
        else:
            if message == "sparse":
                self.tensor_values.append(_product(self._integers(span, SPARSE_DIMS)))
            routes = ROUTES[message]
            for number, inner in _bytes_fields(self._buffer, span):
                if number in routes:
                    self.read(inner, routes[number], depth + 1)

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

    def _read_tensor(self, span: slice) -> tuple[bytes, int]:
        """Name of a tensor, and the product of its values if it may be a shape."""
        self.tensor_values.append(_product(self._integers(span, DIMS)))
        name, values = b"", self._integers(span, INT64_DATA)
        for number, inner in _bytes_fields(self._buffer, span):
            if number == TENSOR_NAME:
                name = self._buffer[inner]
            elif number == RAW_DATA:
                values = self._raw_integers(inner)
            elif number == EXTERNAL_DATA:
                self._read_entry(inner)
        return name, _product(values) if values else 0

    def _raw_integers(self, span: slice) -> list[int]:
        if span.stop - span.start > MAX_SHAPE_BYTES:
            return [HUGE]
        raw = self._buffer[span]
        return [value for (value,) in struct.iter_unpack("<Q", raw[: len(raw) & ~7])]

    def _read_node(self, span: slice, depth: int) -> None:
        inputs, outputs, operator = [], [], b""
        products = [0]
        for number, inner in _bytes_fields(self._buffer, span):
            if number == NODE_INPUT:
                inputs.append(self._buffer[inner])
            elif number == NODE_OUTPUT:
                outputs.append(self._buffer[inner])
            elif number == NODE_OPERATOR:
                operator = self._buffer[inner]
            elif number in ROUTES["node"]:
                self.read(inner, "attribute", depth + 1)
                products += self._attribute_products(inner)
        for name in outputs:
            self._add_shape(name, max(products))
        place = FILLING.get(operator)
        if place is not None and place < len(inputs):
            self.filled.append(inputs[place])

    def _attribute_products(self, span: slice) -> Iterator[int]:
        """Products of the constants that an attribute holds."""
        for number, inner in _bytes_fields(self._buffer, span):
            if number == ATTRIBUTE_TENSOR:
                yield self._read_tensor(inner)[1]
        integers = self._integers(span, ATTRIBUTE_INTS)
        if integers:
            yield _product(integers)

    def _add_shape(self, name: bytes, product: int) -> None:
        # Inner graphs may use a name again; the largest one counts.
        self.shapes[name] = max(product, self.shapes.get(name, 0))

    def _integers(self, span: slice, wanted: int) -> list[int]:
        """Values of a repeated integer field, packed or not."""
        found: list[int] = []
        for number, _, value in read_fields(self._buffer, span.start, span.stop):
            if number != wanted:
                continue
            if isinstance(value, int):
                found.append(value)
            elif value.stop - value.start > MAX_SHAPE_BYTES:
                found.append(HUGE)
            else:
                found += read_varints(self._buffer, value.start, value.stop)
        return found


def _product(values: Iterable[int]) -> int:
    """Product of 64-bit integers, at most `HUGE`; a negative one, read as unsigned, counts as 1."""
    product = 1
    for value in values:
        product = min(product * (value if value <= HUGE else 1), HUGE)
    return product
