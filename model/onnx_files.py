"""Which files an ONNX graph keeps its weights in, read from its bytes alone.

Serving must know before a runtime opens them, and has no `onnx` package. So the protobuf wire
format is walked here: lengths and the fields that lead to tensors are read, weights are skipped.

Source: field numbers from onnx.proto (ONNX IR 10); the wire format from protobuf's encoding guide.
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES: Final = 10
# Graphs inside nodes inside graphs; no model of ours goes deeper than two.
MAX_DEPTH: Final = 64

Buffer = bytes | mmap.mmap
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
    """Locations of external weights as the graph names them, relative to the graph's folder.

    Raises:
        ValueError: The file is no ONNX graph, or is cut off.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty, so it is no ONNX graph")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return set(_locations(content, (0, len(content)), "model", 0))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no whole ONNX graph: {error}") from error


def _locations(buffer: Buffer, span: tuple[int, int], message: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ValueError(f"messages lie more than {MAX_DEPTH} deep in each other")
    if message == "entry":
        yield from _entry_locations(buffer, span)
        return
    routes = ROUTES[message]
    for number, inner in _fields(buffer, span):
        if number in routes:
            yield from _locations(buffer, inner, routes[number], depth + 1)


def _entry_locations(buffer: Buffer, span: tuple[int, int]) -> Iterator[str]:
    keys, values = set(), []
    for number, (start, end) in _fields(buffer, span):
        if number == ENTRY_KEY:
            keys.add(bytes(buffer[start:end]))
        elif number == ENTRY_VALUE:
            values.append(bytes(buffer[start:end]).decode())
    # A field that comes twice counts once, and readers differ in which: all of them are named.
    if b"location" in keys:
        yield from values


def _fields(buffer: Buffer, span: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Numbers of the fields that hold bytes, and where those are; the others are passed over."""
    at, end = span
    while at < end:
        tag, at = _varint(buffer, at, end)
        kind = tag & 7
        if kind == VARINT:
            _, at = _varint(buffer, at, end)
            continue
        if kind == BYTES:
            length, at = _varint(buffer, at, end)
        elif kind in {FIXED64, FIXED32}:
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind} at byte {at}")
        if length > end - at:
            raise ValueError(f"{length} bytes are announced at byte {at}, {end - at} are there")
        if kind == BYTES:
            yield tag >> 3, (at, at + length)
        at += length


def _varint(buffer: Buffer, at: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(MAX_VARINT_BYTES):
        if at + index >= end:
            break
        byte = buffer[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError(f"a number that does not end at byte {at}")
