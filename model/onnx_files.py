"""Find the external weight files that an ONNX graph names, without the `onnx` package.

Serving checks these names before a runtime opens the files, and does not install `onnx`. Only the
fields that lead to tensors are read; weights are skipped.

Source: field numbers from onnx.proto (ONNX IR 10).
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from model.protobuf_wire import BYTES, Buffer, read_fields

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
    "tensor": {13: "entry"},
}
ENTRY_KEY, ENTRY_VALUE = 1, 2


def external_files(path: Path) -> set[str]:
    """Return the external weight files that the graph names, relative to the graph's folder.

    Raises:
        ValueError: The file is not an ONNX graph, or is cut off.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty, so it is not an ONNX graph")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return set(_locations(content, slice(0, len(content)), "model", 0))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a complete ONNX graph: {error}") from error


def _locations(buffer: Buffer, span: slice, message: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ValueError(f"messages are nested more than {MAX_DEPTH} deep")
    if message == "entry":
        yield from _entry_locations(buffer, span)
        return
    routes = ROUTES[message]
    for number, inner in _bytes_fields(buffer, span):
        if number in routes:
            yield from _locations(buffer, inner, routes[number], depth + 1)


def _entry_locations(buffer: Buffer, span: slice) -> Iterator[str]:
    keys, values = set(), []
    for number, value in _bytes_fields(buffer, span):
        if number == ENTRY_KEY:
            keys.add(buffer[value])
        elif number == ENTRY_VALUE:
            values.append(buffer[value].decode())
    # Readers differ in which of two equal fields counts, so all of them are returned.
    if b"location" in keys:
        yield from values


def _bytes_fields(buffer: Buffer, span: slice) -> Iterator[tuple[int, slice]]:
    for number, wire_type, value in read_fields(buffer, span.start, span.stop):
        if wire_type == BYTES and isinstance(value, slice):
            yield number, value
