"""Input tensors of the Open Inference Protocol, from bytes or values.

Names, shapes and lengths come from callers. Nothing is allocated by a shape before as many bytes
have arrived. Shape legend: B images or texts, H W pixels.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest, RequestTooLarge
from service.messages import RequestLimits

Datatype = Literal["BYTES", "UINT8", "FP32", "FP16"]
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
LENGTH: Final = struct.Struct("<I")
ANY: Final = -1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Metadata of a tensor; -1 stands for any size."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor may have this shape."""
        return len(shape) == len(self.shape) and all(
            size >= 0 and known in {ANY, size}
            for size, known in zip(shape, self.shape, strict=True)
        )


# Encoded images, pixels of any size, preprocessed pixels, and texts.
IMAGE: Final = TensorSpec("image", "BYTES", (ANY,))
PIXELS: Final = TensorSpec("pixels", "UINT8", (ANY, ANY, ANY, 3))
PIXEL_VALUES: Final = TensorSpec("pixel_values", "FP32", (ANY, 3, ANY, ANY))
TEXT: Final = TensorSpec("text", "BYTES", (ANY,))
INPUTS: Final = {spec.name: spec for spec in (IMAGE, PIXELS, PIXEL_VALUES, TEXT)}


class InputTensor(NamedTuple):
    """A tensor: for BYTES its elements, else an array of its shape."""

    name: str
    elements: tuple[bytes, ...] | NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHead:
    """A checked input tensor without its elements.

    Attributes:
        spec: Metadata of the input.
        shape: Shape in this request.
        param: The field in errors, such as `inputs[0]`.
    """

    spec: TensorSpec
    shape: tuple[int, ...]
    param: str

    @property
    def num_elements(self) -> int:
        """By the shape; may be more than any machine can hold."""
        return math.prod(self.shape)


def check_head(
    name: str, datatype: str, shape: Sequence[int], limits: RequestLimits, *, param: str
) -> TensorHead:
    """Check name, datatype and shape of a tensor.

    Raises:
        InvalidRequest: There is no such input, or it has another datatype or shape.
        RequestTooLarge: It has more items than one request may have.
    """
    spec = INPUTS.get(name)
    if spec is None:
        raise InvalidRequest(
            f"{param}: unknown input {name[:100]!r}; known are {', '.join(INPUTS)}.",
            code="unknown_input",
            param=param,
        )
    if datatype != spec.datatype:
        raise InvalidRequest(
            f"{param}: {name} is {spec.datatype}, not {datatype[:100]!r}. Send encoded images as "
            "image (BYTES), and pixels as pixels (UINT8) or pixel_values (FP32).",
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
            f"{param}: {shape[0]} items given, at most {limit} allowed.",
            code="too_many_items",
            param=f"{param}.shape",
        )
    return TensorHead(spec=spec, shape=tuple(shape), param=param)


def read_raw(head: TensorHead, raw: bytes | memoryview) -> InputTensor:
    """A tensor from little-endian, row-major elements. Arrays are views of `raw`.

    Raises:
        InvalidRequest: The number of bytes does not match the shape, or a length is invalid.
    """
    if head.spec.datatype == "BYTES":
        return InputTensor(head.spec.name, _split(head, memoryview(raw)))
    dtype = DTYPES[head.spec.datatype]
    needed = head.num_elements * dtype.itemsize
    if len(raw) != needed:
        raise _wrong_size(head, f"takes {needed} bytes, not {len(raw)}")
    return InputTensor(head.spec.name, np.frombuffer(raw, dtype).reshape(head.shape))


def read_values(head: TensorHead, values: Any) -> InputTensor:
    """A tensor from numbers in a flat list, or in lists nested by the shape.

    Raises:
        InvalidRequest: They are not numbers of the datatype, or do not match the shape.
    """
    is_real = head.spec.datatype == "FP32"
    try:
        # As objects first: NumPy would make a huge array of long strings.
        array = np.asarray(values, dtype=object)
        is_valid = {type(value) for value in array.flat} <= ({int, float} if is_real else {int})
        numbers = array.astype(np.float64) if is_valid else None
    except (ValueError, OverflowError, RecursionError, RuntimeError):
        # Ragged, too large, or nested too deeply: NumPy iterates over at most 32 axes.
        numbers = None
    if numbers is None:
        raise InvalidRequest(
            f"{head.param}: the data of {head.spec.name} must be one list of "
            f"{'numbers' if is_real else 'whole numbers'}, or lists nested by its shape.",
            param=f"{head.param}.data",
        )
    if numbers.size != head.num_elements or numbers.shape not in {head.shape, (numbers.size,)}:
        raise _wrong_size(
            head, f"has {head.num_elements} elements, and its data has {numbers.size}"
        )
    if not is_real and not (numbers.min() >= 0 and numbers.max() <= 255):
        raise InvalidRequest(
            f"{head.param}: UINT8 holds whole numbers from 0 to 255.", param=f"{head.param}.data"
        )
    with np.errstate(over="ignore"):  # infinite values are refused later
        typed = numbers.astype(DTYPES[head.spec.datatype])
    return InputTensor(head.spec.name, typed.reshape(head.shape))


def read_items(head: TensorHead, items: Sequence[bytes]) -> InputTensor:
    """A BYTES tensor from its elements.

    Raises:
        InvalidRequest: Their number does not match the shape.
    """
    if len(items) != head.num_elements:
        raise _wrong_size(head, f"has {head.num_elements} elements, and its data has {len(items)}")
    return InputTensor(head.spec.name, tuple(items))


def _split(head: TensorHead, raw: memoryview) -> tuple[bytes, ...]:
    """Split elements that each follow their length, 4 bytes, little-endian."""
    items: list[bytes] = []
    rest = raw
    for _ in range(head.num_elements):
        size = LENGTH.size + LENGTH.unpack_from(rest)[0] if len(rest) >= LENGTH.size else 0
        if not LENGTH.size <= size <= len(rest):
            break
        items.append(bytes(rest[LENGTH.size : size]))
        rest = rest[size:]
    if rest or len(items) < head.num_elements:
        raise _wrong_size(
            head,
            "has each element after its length, 4 bytes, little-endian: "
            f"after {len(items)} elements {len(rest)} bytes are left",
        )
    return tuple(items)


def _wrong_size(head: TensorHead, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{head.param}: {head.spec.name} of shape {list(head.shape)} {what}.",
        code="wrong_size",
        param=head.param,
    )
