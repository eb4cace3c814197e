"""Memory of runs, on the GPU and page-locked on the host, and the places of tensors in it."""

import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.runtime.tensorrt.cuda import Cuda
from model.runtime.tensorrt.profiles import Shape

# TensorRT requires it of activations; it is more than enough for tensors.
ALIGNMENT: Final = 256
ON_HOST: Final = ("cudaMallocHost", "cudaFreeHost", "locked memory")
ON_GPU: Final = ("cudaMalloc", "cudaFree", "GPU memory")


@dataclass(frozen=True, slots=True)
class Slot:
    """Place of a tensor in a buffer."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def view(self, base: int) -> NDArray[Any]:
        """The tensor in host memory, in a buffer at this address."""
        memory = (ctypes.c_ubyte * self.num_bytes).from_address(base + self.offset)
        return np.ndarray(self.shape, self.dtype, memoryview(memory))


def lay_out(tensors: Mapping[str, tuple[Shape, np.dtype[Any]]]) -> tuple[list[Slot], int]:
    """Place tensors one after another, aligned; return slots and total bytes."""
    slots: list[Slot] = []
    end = 0
    for name, (shape, dtype) in tensors.items():
        slots.append(Slot(name, shape, dtype, end))
        end += -(-slots[-1].num_bytes // ALIGNMENT) * ALIGNMENT
    return slots, end


def store(slot: Slot, base: int, array: NDArray[Any]) -> None:
    """Copy items to the first rows of a tensor in host memory.

    Texts that are shorter are padded with zeros; pixels in float32 are rounded to 8 bits.
    """
    view = slot.view(base)[: len(array)]
    if view.dtype == np.uint8 and array.dtype == np.float32:
        array = np.rint(array * np.float32(255))
    if view.ndim == 2:
        view[:, array.shape[1] :] = 0
        view = view[:, : array.shape[1]]
    np.copyto(view, array, casting="unsafe")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes that a run takes: all inputs, all outputs, and what it works in."""

    inputs: int = 0
    outputs: int = 0
    activations: int = 0


def largest(sizes: Iterable[Sizes]) -> Sizes:
    """What is enough for each of these."""
    every = list(sizes)
    return Sizes(
        *(
            max((getattr(one, name) for one in every), default=0)
            for name in ("inputs", "outputs", "activations")
        )
    )


class Memory:
    """Five pieces of memory; all inputs are in one, so that a run copies them at once."""

    def __init__(self, cuda: Cuda, sizes: Sizes) -> None:
        """Reserve it.

        Raises:
            GpuError: There is not enough memory; nothing stays reserved.
        """
        self._cuda, self.sizes = cuda, sizes
        self._held: list[tuple[str, str, int]] = []
        try:
            self.inputs_host = self._reserve(*ON_HOST, sizes.inputs)
            self.inputs_gpu = self._reserve(*ON_GPU, sizes.inputs)
            self.outputs_host = self._reserve(*ON_HOST, sizes.outputs)
            self.outputs_gpu = self._reserve(*ON_GPU, sizes.outputs)
            self.activations = self._reserve(*ON_GPU, sizes.activations)
        except BaseException:
            self.close()
            raise

    def _reserve(self, allocate: str, free: str, kind: str, num_bytes: int) -> int:
        if not num_bytes:
            return 0
        address = int(self._cuda(allocate, f"reserve {num_bytes} bytes of {kind}", num_bytes))
        self._held.append((free, kind, address))
        return address

    def close(self) -> None:
        """Free it; nothing may be running."""
        while self._held:
            free, kind, address = self._held.pop()
            self._cuda(free, f"free {kind}", address)
