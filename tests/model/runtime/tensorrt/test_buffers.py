"""Values are converted to the GPU's types and back as NumPy and torch convert them."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from model.runtime.tensorrt.buffers import ALIGNMENT, Buffer, ElementType, fetch, lay_out, store

FloatArray = NDArray[np.float32]
FLOAT32 = ElementType(np.dtype(np.float32))
BFLOAT16 = ElementType(np.dtype(np.uint16), is_bfloat16=True)
FLOAT16 = ElementType(np.dtype(np.float16))
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
FINITE = st.floats(-(2.0**127), 2.0**127, width=32)


@given(shapes=st.lists(SHAPES, min_size=1, max_size=6), data=st.data())
def test_tensors_lie_aligned_and_apart(shapes: list[tuple[int, ...]], data: st.DataObject) -> None:
    kinds = [data.draw(st.sampled_from([FLOAT32, BFLOAT16])) for _ in shapes]
    tensors = {str(i): (shape, kinds[i]) for i, shape in enumerate(shapes)}
    slots, num_bytes = lay_out(tensors)
    end = 0
    for slot in slots:
        assert slot.offset % ALIGNMENT == 0
        assert slot.offset >= end
        end = slot.offset + slot.num_bytes
    assert end <= num_bytes


@given(array=hnp.arrays(np.float32, SHAPES, elements=FINITE))
def test_bfloat16_is_rounded_as_torch_does(array: FloatArray) -> None:
    expected = torch.from_numpy(array).bfloat16().float().numpy()
    assert np.array_equal(through_memory(array, BFLOAT16), expected)


@given(array=hnp.arrays(np.float32, SHAPES, elements=st.floats(-60_000, 60_000, width=32)))
def test_other_types_are_rounded_as_numpy_does(array: FloatArray) -> None:
    assert np.array_equal(through_memory(array, FLOAT32), array)
    expected = array.astype(np.float16).astype(np.float32)
    assert np.array_equal(through_memory(array, FLOAT16), expected)


def through_memory(array: FloatArray, element: ElementType) -> FloatArray:
    """Store and fetch again, a bit into the memory."""
    other = np.zeros((1,), np.float32)
    (_, slot), size = lay_out({"first": (other.shape, FLOAT32), "second": (array.shape, element)})
    memory = (ctypes.c_ubyte * size)()
    base = ctypes.addressof(memory)
    store(slot, base, array)
    out = np.full(array.shape, np.nan, np.float32)
    fetch(slot, base, out)
    return out


def test_memory_grows_and_never_holds_both_pieces() -> None:
    held: dict[int, int] = {}
    most = 0

    def allocate(size: int) -> int:
        nonlocal most
        held[len(held) + 256 * (1 + size)] = size
        most = max(most, len(held))
        return next(iter(held))

    buffer = Buffer(allocate, held.pop)
    assert buffer.reserve(100)
    assert not buffer.reserve(256)
    assert buffer.reserve(257)
    assert buffer.size_bytes >= 257 * 5 // 4
    assert most == 1
    buffer.close()
    buffer.close()
    assert not held
    assert buffer.address == 0


def test_a_failed_allocation_leaves_an_empty_buffer() -> None:
    def allocate(size: int) -> int:
        if size > 1000:
            raise MemoryError
        return 512

    buffer = Buffer(allocate, lambda _address: None)
    buffer.reserve(10)
    with pytest.raises(MemoryError):
        buffer.reserve(5000)
    assert buffer.size_bytes == 0
    assert buffer.reserve(10)
