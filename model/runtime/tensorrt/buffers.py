"""Reusable memory of one lane: on the GPU, and page-locked on the host.

All inputs are in one buffer, so that a run copies them at once, and all outputs in another.
"""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.runtime.tensorrt.cuda import Cuda, GpuError
from model.runtime.tensorrt.profiles import Shape

# TensorRT requires it of activations; it is more than enough for tensors.
ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class ElementType:
    """Type of a tensor's numbers; bfloat16, which NumPy lacks, is stored as uint16."""

    dtype: np.dtype[Any]
    is_bfloat16: bool = False


FLOAT32: Final = ElementType(np.dtype(np.float32))


@dataclass(frozen=True, slots=True)
class Slot:
    """Place of a tensor in a buffer."""

    name: str
    shape: Shape
    element: ElementType
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.element.dtype.itemsize


def lay_out(tensors: Mapping[str, tuple[Shape, ElementType]]) -> tuple[list[Slot], int]:
    """Place tensors one after another, aligned; return slots and total bytes."""
    slots: list[Slot] = []
    end = 0
    for name, (shape, element) in tensors.items():
        slots.append(Slot(name, shape, element, end))
        end += _aligned(slots[-1].num_bytes)
    return slots, end


class Buffer:
    """Memory that is replaced by a larger piece when it is too small."""

    def __init__(self, allocate: Callable[[int], int], free: Callable[[int], object]) -> None:
        """Reserve nothing yet.

        Args:
            allocate: Allocates bytes and returns the address.
            free: Frees an address.
        """
        self._allocate, self._free = allocate, free
        self.address = 0
        self.size_bytes = 0

    def reserve(self, num_bytes: int) -> bool:
        """Reserve at least this size; the content is lost when the buffer grows.

        Returns:
            Whether the address changed.
        """
        if num_bytes <= self.size_bytes:
            return False
        # A quarter more, so that slowly growing sizes do not reallocate each time. The old piece is
        # freed first, since both may not fit.
        wanted = _aligned(num_bytes if not self.size_bytes else num_bytes + num_bytes // 4)
        self.close()
        self.address = self._allocate(wanted)
        self.size_bytes = wanted
        return True

    def close(self) -> None:
        """Free it; it can be reserved again."""
        address, self.address, self.size_bytes = self.address, 0, 0
        if address:
            self._free(address)


class Buffers:
    """All memory of a lane, shared by its graphs, which run one after another.

    Attributes:
        generation: Rises when an address changes, which invalidates recorded CUDA graphs.
    """

    def __init__(self, cuda: Cuda) -> None:
        """Reserve nothing yet."""

        def buffer(allocate: str, free: str, kind: str) -> Buffer:
            return Buffer(
                lambda size: int(cuda(allocate, f"reserve {size} bytes of {kind}", size)),
                lambda address: cuda(free, f"free {kind}", address),
            )

        on_host = ("cudaMallocHost", "cudaFreeHost", "locked memory")
        on_device = ("cudaMalloc", "cudaFree", "GPU memory")
        self.generation = 0
        self.inputs_host, self.inputs_device = buffer(*on_host), buffer(*on_device)
        self.outputs_host, self.outputs_device = buffer(*on_host), buffer(*on_device)
        self.activations = buffer(*on_device)

    def reserve(self, *, inputs: int, outputs: int, activations: int) -> None:
        """Reserve bytes in each buffer; nothing may be running.

        Raises:
            GpuError: There is not enough memory.
        """
        sizes = (inputs, inputs, outputs, outputs, activations)
        for buffer, num_bytes in zip(self._all(), sizes, strict=True):
            if num_bytes > buffer.size_bytes:
                # First, since the old address is also invalid after a failure.
                self.generation += 1
                buffer.reserve(num_bytes)

    def close(self) -> None:
        """Free all buffers, also after a failure.

        Raises:
            GpuError: The first failure.
        """
        failures: list[GpuError] = []
        for buffer in self._all():
            try:
                buffer.close()
            except GpuError as error:
                failures.append(error)
        self.generation += 1
        if failures:
            raise failures[0]

    def _all(self) -> tuple[Buffer, ...]:
        """Buffers of inputs, outputs and activations, on the host first."""
        inputs, outputs = self.inputs_host, self.outputs_host
        return inputs, self.inputs_device, outputs, self.outputs_device, self.activations


def store(slot: Slot, base: int, array: NDArray[Any]) -> None:
    """Copy an array to its slot in host memory, converted to the tensor's type."""
    view = _view(slot, base)
    if slot.element.is_bfloat16:
        # Rounds to nearest, ties to even; values are finite.
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        view[...] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    else:
        np.copyto(view, array, casting="unsafe")


def fetch(slot: Slot, base: int, out: NDArray[np.float32]) -> None:
    """Copy a tensor from host memory into an array of its shape, as float32."""
    view = _view(slot, base)
    if slot.element.is_bfloat16:
        np.left_shift(view, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(out, view, casting="unsafe")


def _view(slot: Slot, base: int) -> NDArray[Any]:
    memory = (ctypes.c_ubyte * slot.num_bytes).from_address(base + slot.offset)
    return np.ndarray(slot.shape, slot.element.dtype, memoryview(memory))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
