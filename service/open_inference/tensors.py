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

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
LENGTH: Final = struct.Struct("<I")
ANY: Final = -1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Metadata of a tensor; -1 stands for any size."""

    name: str
    datatype: Literal["BYTES", "UINT8", "FP32"]
    shape: tuple[int, ...]


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


class TensorHead(NamedTuple):
    """A tensor as a request describes it; `param` names it in errors, such as `inputs[0]`."""

    name: str
    datatype: str
    shape: Sequence[int]
    param: str


def read_tensor(
    head: TensorHead, limits: RequestLimits, content: bytes | memoryview | list[Any]
) -> InputTensor:
    """Read a tensor.

    Args:
        head: Its description.
        limits: Limits of one request.
        content: Row-major little-endian elements, of which an array is a view; or a list of them,
            numbers also in lists that are nested by the shape. In bytes, each element of BYTES
            follows its length, 4 bytes.

    Raises:
        InvalidRequest: There is no such input, or datatype, shape or content do not fit it.
        RequestTooLarge: It has more items than one request may have.
    """
    _check_head(head, limits)
    if head.datatype == "BYTES":
        items = tuple(content) if isinstance(content, list) else _split(head, memoryview(content))
        _check_size(head, len(items))
        return InputTensor(head.name, items)
    if not isinstance(content, list):
        dtype = DTYPES[head.datatype]
        _check_size(head, len(content), element_bytes=dtype.itemsize)
        array = np.frombuffer(content, dtype)
    else:
        array = _read_numbers(head, content)
    return InputTensor(head.name, array.reshape(head.shape))


def _check_head(head: TensorHead, limits: RequestLimits) -> None:
    name, datatype, shape, param = head
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
    if len(shape) != len(spec.shape) or any(
        size < 1 or known not in {ANY, size} for size, known in zip(shape, spec.shape, strict=True)
    ):
        raise InvalidRequest(
            f"{param}: {name} has the shape {list(spec.shape)}, where -1 is any size from 1; "
            f"{str(list(shape))[:100]} does not fit.",
            code="empty_list" if 0 in shape else None,
            param=f"{param}.shape",
        )
    limit = limits.max_texts if spec is TEXT else limits.max_images
    if shape[0] > limit:
        raise RequestTooLarge(
            f"{param}: {shape[0]} items given, at most {limit} allowed.",
            code="too_many_items",
            param=f"{param}.shape",
        )


def _check_size(head: TensorHead, size: int, *, element_bytes: int = 0) -> None:
    """Check the number of elements, or of their bytes, against the shape."""
    unit = "bytes" if element_bytes else "elements"
    # Python's own integers: a shape may be of more elements than any machine holds.
    if size != (needed := math.prod(head.shape) * (element_bytes or 1)):
        raise InvalidRequest(
            f"{head.param}: {head.name} of shape {list(head.shape)} has {needed} {unit}, and "
            f"its data has {size}.",
            code="wrong_size",
            param=head.param,
        )


def _split(head: TensorHead, rest: memoryview) -> tuple[bytes, ...]:
    """The elements of BYTES, at most as many as the shape has: a body may hold millions."""
    items: list[bytes] = []
    num_elements = math.prod(head.shape)
    while rest:
        size = LENGTH.size + LENGTH.unpack_from(rest)[0] if len(rest) >= LENGTH.size else 0
        if len(items) == num_elements or not LENGTH.size <= size <= len(rest):
            raise InvalidRequest(
                f"{head.param}: {head.name} of shape {list(head.shape)} has {num_elements} "
                "elements, each after its length, 4 bytes, little-endian; after "
                f"{len(items)} elements {len(rest)} bytes are left.",
                code="wrong_size",
                param=head.param,
            )
        items.append(bytes(rest[LENGTH.size : size]))
        rest = rest[size:]
    return tuple(items)


def _read_numbers(head: TensorHead, values: list[Any]) -> NDArray[Any]:
    is_real, numbers = head.datatype == "FP32", None
    try:
        # As objects first: NumPy would make a huge array of long strings.
        array = np.asarray(values, dtype=object)
        is_valid = {type(value) for value in array.flat} <= ({int, float} if is_real else {int})
        if is_valid:
            numbers = array.astype(np.float64)
    except (ValueError, OverflowError, RecursionError, RuntimeError):
        pass  # ragged, too large, or nested too deeply: NumPy iterates over at most 32 axes
    if numbers is None or not (is_real or ((numbers >= 0) & (numbers <= 255)).all()):
        raise InvalidRequest(
            f"{head.param}: the data of {head.name} must be one list of "
            f"{'numbers' if is_real else 'whole numbers from 0 to 255'}, or lists nested by its "
            "shape.",
            param=f"{head.param}.data",
        )
    _check_size(head, numbers.size)
    if numbers.shape not in {(numbers.size,), tuple(head.shape)}:
        raise InvalidRequest(
            f"{head.param}: the data of {head.name} must be one list, or lists nested by its "
            f"shape, {list(head.shape)}, not by {list(numbers.shape)}.",
            code="wrong_size",
            param=head.param,
        )
    with np.errstate(over="ignore"):  # infinite values are refused later
        return numbers.astype(DTYPES[head.datatype])
