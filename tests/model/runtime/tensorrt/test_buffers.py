"""Values are converted to the GPU's types and back as NumPy and torch convert them."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from model.runtime.tensorrt.buffers import (
    ALIGNMENT,
    FLOAT32,
    Buffer,
    ElementType,
    fetch,
    lay_out,
    store,
)

FloatArray = NDArray[np.float32]
BFLOAT16 = ElementType(np.dtype(np.uint16), is_bfloat16=True)
FLOAT16 = ElementType(np.dtype(np.float16))
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
KINDS = st.sampled_from([FLOAT32, BFLOAT16])


@settings(max_examples=40)
@given(tensors=st.lists(st.tuples(SHAPES, KINDS), min_size=1, max_size=6))
def test_tensors_are_aligned_and_do_not_overlap(
    tensors: list[tuple[tuple[int, ...], ElementType]],
) -> None:
    slots, num_bytes = lay_out(dict(zip("abcdef", tensors, strict=False)))
    end = 0
    for slot in slots:
        assert slot.offset % ALIGNMENT == 0
        assert slot.offset >= end
        end = slot.offset + slot.num_bytes
    assert end <= num_bytes


@settings(max_examples=40)
@given(array=hnp.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_float32_is_exact_and_bfloat16_is_rounded_as_torch_does(array: FloatArray) -> None:
    assert np.array_equal(through_memory(array, FLOAT32), array)
    expected = torch.from_numpy(array).bfloat16().float().numpy()
    assert np.array_equal(through_memory(array, BFLOAT16), expected)


@settings(max_examples=40)
@given(array=hnp.arrays(np.float32, SHAPES, elements=st.floats(-60_000, 60_000, width=32)))
def test_float16_is_rounded_as_numpy_does(array: FloatArray) -> None:
    expected = array.astype(np.float16).astype(np.float32)
    assert np.array_equal(through_memory(array, FLOAT16), expected)


def through_memory(array: FloatArray, element: ElementType) -> FloatArray:
    """Store an array behind another one, and fetch it."""
    (_, slot), size = lay_out({"first": ((1,), FLOAT32), "second": (array.shape, element)})
    memory = (ctypes.c_ubyte * size)()
    base = ctypes.addressof(memory)
    store(slot, base, array)
    out = np.full(array.shape, np.nan, np.float32)
    fetch(slot, base, out)
    return out


def test_a_buffer_grows_by_freeing_first_and_is_empty_after_a_failure() -> None:
    held: dict[int, int] = {}

    def allocate(size: int) -> int:
        assert not held, "both pieces may not fit"
        if size > 1000:
            raise MemoryError
        held[256 * size] = size
        return 256 * size

    buffer = Buffer(allocate, held.pop)
    assert buffer.reserve(100)
    assert not buffer.reserve(256)
    assert buffer.reserve(257)
    assert buffer.size_bytes >= 257 * 5 // 4
    with pytest.raises(MemoryError):
        buffer.reserve(5000)
    assert (buffer.size_bytes, held) == (0, {})
    assert buffer.reserve(10)
    buffer.close()
    buffer.close()
    assert (buffer.address, held) == (0, {})
