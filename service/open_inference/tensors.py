"""Tensors of the Open Inference Protocol: which there are, and their elements as bytes or values.

Everything here has been made up by a caller: names, shapes, lengths. Nothing is allocated by what a
shape says before as many bytes are here. Shape legend: B images or texts, H W pixels.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest, RequestTooLarge
from service.messages import RequestLimits

Datatype = Literal["BYTES", "UINT8", "FP32", "FP16"]
Elements = tuple[bytes, ...] | NDArray[Any]

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "UINT8": np.dtype("u1"),
    "FP32": np.dtype("<f4"),
    "FP16": np.dtype("<f2"),
}
LENGTH: Final = struct.Struct("<I")
ANY: Final = -1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What metadata says of a tensor; a size of -1 may be any."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor may have this shape."""
        return len(shape) == len(self.shape) and all(
            size >= 0 and known in {ANY, size}
            for size, known in zip(shape, self.shape, strict=True)
        )


# Encoded images, pixels of any size, what the model is to see, and texts.
IMAGE: Final = TensorSpec("image", "BYTES", (ANY,))
PIXELS: Final = TensorSpec("pixels", "UINT8", (ANY, ANY, ANY, 3))
PIXEL_VALUES: Final = TensorSpec("pixel_values", "FP32", (ANY, 3, ANY, ANY))
TEXT: Final = TensorSpec("text", "BYTES", (ANY,))
INPUTS: Final = {spec.name: spec for spec in (IMAGE, PIXELS, PIXEL_VALUES, TEXT)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHead:
    """An input tensor without its elements, found to be one that there is.

    Attributes:
        spec: Which one it is.
        shape: Of this one.
        param: The field that errors name, such as `inputs[0]`.
    """

    spec: TensorSpec
    shape: tuple[int, ...]
    param: str

    @property
    def num_elements(self) -> int:
        """As the shape has it; it may be more than any machine holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTensor:
    """A tensor that is here: for BYTES its elements, else an array of its shape."""

    name: str
    elements: Elements


def check_head(
    name: str, datatype: str, shape: Sequence[int], limits: RequestLimits, *, param: str
) -> TensorHead:
    """Find the input that a tensor is meant for.

    Raises:
        InvalidRequest: There is no such input, or not of this datatype or shape.
        RequestTooLarge: It has more items than one request may.
    """
    spec = INPUTS.get(name)
    if spec is None:
        raise InvalidRequest(
            f"{param}: there is no input {name[:100]!r}; there are {', '.join(INPUTS)}.",
            code="unknown_input",
            param=param,
        )
    if datatype != spec.datatype:
        raise InvalidRequest(
            f"{param}: {name} is {spec.datatype}, not {datatype[:100]!r}. Encoded images go as "
            "image (BYTES), pixels as pixels (UINT8) or pixel_values (FP32).",
            param=f"{param}.datatype",
        )
    if not spec.fits(shape):
        raise InvalidRequest(
            f"{param}: {name} has the shape {list(spec.shape)}, where -1 is any size; "
            f"{str(list(shape))[:100]} does not fit.",
            param=f"{param}.shape",
        )
    if 0 in shape:
        raise InvalidRequest(
            f"{param}: {name} of shape {list(shape)} is empty; give at least one item.",
            code="empty_list",
            param=f"{param}.shape",
        )
    limit = limits.max_texts if spec is TEXT else limits.max_images
    if shape[0] > limit:
        raise RequestTooLarge(
            f"{param}: {shape[0]} items are too many; at most {limit} are taken at once.",
            code="too_many_items",
            param=f"{param}.shape",
        )
    return TensorHead(spec=spec, shape=tuple(shape), param=param)


def read_raw(head: TensorHead, raw: bytes | memoryview) -> InputTensor:
    """A tensor from its elements as they lie in memory, little-endian and row-major.

    Arrays are views of `raw`.

    Raises:
        InvalidRequest: They are not as many as the shape has, or lengths among them are wrong.
    """
    if head.spec.datatype == "BYTES":
        return InputTensor(name=head.spec.name, elements=_split(head, memoryview(raw)))
    dtype = DTYPES[head.spec.datatype]
    needed = head.num_elements * dtype.itemsize
    if len(raw) != needed:
        raise InvalidRequest(
            f"{head.param}: {head.spec.name} of shape {list(head.shape)} takes {needed} bytes, not "
            f"{len(raw)}.",
            code="wrong_size",
            param=head.param,
        )
    array = np.frombuffer(raw, dtype).reshape(head.shape)
    return InputTensor(name=head.spec.name, elements=array)


def read_values(head: TensorHead, values: Any) -> InputTensor:
    """A tensor from numbers in lists, flat or nested as the shape is.

    Raises:
        InvalidRequest: They are no numbers of the datatype, or not as many as the shape has.
    """
    is_real = head.spec.datatype == "FP32"
    array = _to_array(head, values, is_real)
    if array.size != head.num_elements or array.shape not in {head.shape, (array.size,)}:
        raise wrong_count(head, array.size)
    if not is_real and not (array.min() >= 0 and array.max() <= 255):
        raise InvalidRequest(
            f"{head.param}: UINT8 holds whole numbers from 0 to 255.", param=f"{head.param}.data"
        )
    with np.errstate(over="ignore"):  # what becomes infinite is refused as a pixel
        typed = array.astype(DTYPES[head.spec.datatype])
    return InputTensor(name=head.spec.name, elements=typed.reshape(head.shape))


def _to_array(head: TensorHead, values: Any, is_real: bool) -> NDArray[np.float64]:
    """Numbers of any size; as objects first, for a list of long texts would become a huge array."""
    try:
        array = np.asarray(values, dtype=object)
        if {type(value) for value in array.flat} <= ({int, float} if is_real else {int}):
            return array.astype(np.float64)
    except (ValueError, OverflowError, RecursionError):  # ragged, nested too deeply, or too large
        pass
    raise InvalidRequest(
        f"{head.param}: the data of {head.spec.name} is one list of "
        f"{'numbers' if is_real else 'whole numbers'}, or lists nested as its shape is.",
        param=f"{head.param}.data",
    )


def read_items(head: TensorHead, items: Sequence[bytes]) -> InputTensor:
    """A BYTES tensor from its elements.

    Raises:
        InvalidRequest: They are not as many as the shape has.
    """
    if len(items) != head.num_elements:
        raise wrong_count(head, len(items))
    return InputTensor(name=head.spec.name, elements=tuple(items))


def wrong_count(head: TensorHead, count: int) -> InvalidRequest:
    """What a caller is told whose data does not fit the shape."""
    return InvalidRequest(
        f"{head.param}: {head.spec.name} of shape {list(head.shape)} has {head.num_elements} "
        f"elements, and its data has {count}.",
        code="wrong_size",
        param=head.param,
    )


def _split(head: TensorHead, raw: memoryview) -> tuple[bytes, ...]:
    """Elements that each follow their length, as 4 bytes, little-endian."""
    items: list[bytes] = []
    position = 0
    for _ in range(head.num_elements):
        start = position + LENGTH.size
        if start > len(raw):
            raise _broken(head, f"ends after {len(items)} of {head.num_elements} elements")
        (length,) = LENGTH.unpack_from(raw, position)
        position = start + length
        if position > len(raw):
            raise _broken(
                head,
                f"element {len(items)} announces {length} bytes, and {len(raw) - start} are left",
            )
        items.append(bytes(raw[start:position]))
    if position != len(raw):
        raise _broken(head, f"{len(raw) - position} bytes are left after the last element")
    return tuple(items)


def _broken(head: TensorHead, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{head.param}: the bytes of {head.spec.name} are not as BYTES are written, each element "
        f"after its length as 4 bytes, little-endian: {what}.",
        code="wrong_size",
        param=head.param,
    )
