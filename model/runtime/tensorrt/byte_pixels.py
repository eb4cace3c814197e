"""Let an ONNX graph take its pixels as bytes, and divide them by 255 itself.

A quarter of the bytes travels to the GPU. Serving does not install `onnx`, and TensorRT cannot
exchange an input, so the bytes of the model are edited.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from typing import Final

from model.protobuf_wire import read_fields

# What graphs of packages take, and what they take after the edit. Of one length, so that the
# lengths of messages stay.
FLOAT_PIXELS: Final = "pixel_values"
BYTE_PIXELS: Final = "pixels_uint8"
GRAPH: Final = 7  # of ModelProto
INPUT: Final = 11  # of GraphProto
# The field `elem_type` of an input: FLOAT, and UINT8.
FLOAT, UINT8 = b"\x08\x01", b"\x08\x02"
# A model with pixels_cast = Cast(pixels_uint8) and pixel_values = Div(pixels_cast, 255).
SCALING: Final = bytes.fromhex(
    "3a740a2c0a0c706978656c735f75696e7438120b706978656c735f636173742204436173742a090a02746f1801"
    "a001020a2d0a0b706978656c735f636173740a0b706978656c735f6d6f7374120c706978656c5f76616c756573"
    "22034469762a151001420b706978656c735f6d6f73744a0400007f43"
)


def take_bytes(model: bytes) -> bytes:
    """Return the model with its input of pixels as bytes; without such an input, as it is."""
    name = FLOAT_PIXELS.encode()
    graph = next(value for number, _, value in read_fields(model) if number == GRAPH)
    assert isinstance(graph, slice)
    for number, _, value in read_fields(model, graph.start, graph.stop):
        if number == INPUT and isinstance(value, slice) and name in model[value]:
            given = model[value].replace(name, BYTE_PIXELS.encode()).replace(FLOAT, UINT8, 1)
            # Protobuf joins messages that follow each other: their lists, and so the graphs' nodes.
            return SCALING + model[: value.start] + given + model[value.stop :]
    return model
