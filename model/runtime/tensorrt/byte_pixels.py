"""Let an ONNX graph take its pixels as bytes, and divide them by 255 itself.

A quarter of the bytes travels to the GPU. The graph is edited as protobuf, since serving does not
install `onnx`.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from typing import Final

import numpy as np

from model.protobuf_wire import BYTES, VARINT, read_fields

# What graphs of packages take, and what they take after the edit.
FLOAT_PIXELS: Final = "pixel_values"
BYTE_PIXELS: Final = "pixel_bytes"
GRAPH: Final = 7  # of ModelProto
NODE, INITIALIZER, INPUT = 1, 5, 11  # of GraphProto
FLOAT, UINT8 = 1, 2  # of TensorProto.DataType
INT: Final = 2  # of AttributeProto.AttributeType


def take_bytes(model: bytes) -> bytes:
    """Return the model with its input of pixels as bytes; without such an input, as it is."""
    parts = []
    for number, wire_type, value in read_fields(model):
        if isinstance(value, int):
            parts.append(_varint(number << 3 | wire_type) + _varint(value))
        elif number == GRAPH:
            parts.append(_field(GRAPH, _edited(model, value)))
        else:
            parts.append(_field(number, model[value]))
    return b"".join(parts)


def _edited(model: bytes, graph: slice) -> bytes:
    added, kept = b"", []
    for number, _, value in read_fields(model, graph.start, graph.stop):
        assert isinstance(value, slice)  # a graph has no numbers
        if number == INPUT and _text(model, value, 1) == FLOAT_PIXELS:
            added = _scaling() + _field(INPUT, _byte_input(model, value))
        else:
            kept.append(_field(number, model[value]))
    return added + b"".join(kept)


def _scaling() -> bytes:
    """`pixel_values = Cast(pixel_bytes) / 255`."""
    to = _text_field(1, "to") + _number_field(3, FLOAT) + _number_field(20, INT)
    cast = _text_field(1, BYTE_PIXELS) + _text_field(2, "pixel_bytes_as_float")
    cast += _text_field(4, "Cast") + _field(5, to)
    divide = _text_field(1, "pixel_bytes_as_float") + _text_field(1, "pixel_byte_range")
    divide += _text_field(2, FLOAT_PIXELS) + _text_field(4, "Div")
    most = _number_field(2, FLOAT) + _text_field(8, "pixel_byte_range")
    most += _field(9, np.float32(255).tobytes())
    return _field(NODE, cast) + _field(NODE, divide) + _field(INITIALIZER, most)


def _byte_input(model: bytes, value_info: slice) -> bytes:
    """The input with another name and type, and the same shape."""
    type_of = _only(model, value_info, 2)
    tensor = _only(model, type_of, 1)
    shape = _field(2, model[_only(model, tensor, 2)])
    return _text_field(1, BYTE_PIXELS) + _field(2, _field(1, _number_field(1, UINT8) + shape))


def _only(model: bytes, message: slice, wanted: int) -> slice:
    fields = read_fields(model, message.start, message.stop)
    return next(v for number, _, v in fields if number == wanted and isinstance(v, slice))


def _text(model: bytes, message: slice, wanted: int) -> str:
    return model[_only(model, message, wanted)].decode()


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _text_field(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
