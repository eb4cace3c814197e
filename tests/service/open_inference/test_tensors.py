"""Input tensors from clients are read exactly or refused."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest, RequestTooLarge, ServiceError
from service.open_inference.tensors import LENGTH, InputTensor, TensorHead, read_tensor
from tests.service.conftest import LIMITS

HUGE = 2**62
PIXELS = ("pixels", "UINT8", [1, 1, 1, 3])
TWO = ("image", "BYTES", [2])


def read(head: tuple[str, str, list[int]], content: Any) -> InputTensor:
    return read_tensor(TensorHead(*head, "inputs[0]"), LIMITS, content)


def packed(*items: bytes) -> bytes:
    return b"".join(LENGTH.pack(len(item)) + item for item in items)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4))
def test_bytes_come_back_as_they_were_packed(items: list[bytes]) -> None:
    for content in (packed(*items), items):
        assert read(("image", "BYTES", [len(items)]), content).elements == tuple(items)


@given(
    st.sampled_from(["image", "pixels", "pixel_values", "text", "other"]),
    st.sampled_from(["BYTES", "UINT8", "FP32", "FP16", ""]),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), max_size=5),
    st.binary(max_size=100),
)
def test_any_tensor_is_read_or_refused(
    name: str, datatype: str, shape: list[int], raw: bytes
) -> None:
    with suppress(ServiceError):
        found = read((name, datatype, shape), raw).elements
        assert raw == (packed(*found) if isinstance(found, tuple) else found.tobytes())


@given(
    st.lists(
        st.recursive(
            st.integers() | st.floats() | st.text(max_size=3) | st.booleans() | st.none(),
            lambda inner: st.lists(inner, max_size=4),
            max_leaves=20,
        )
    )
)
def test_any_values_are_read_or_refused(values: list[Any]) -> None:
    for head in (PIXELS, ("pixel_values", "FP32", [1, 3, 1, 1])):
        with suppress(InvalidRequest):
            read(head, values)


def test_numbers_come_flat_or_nested() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    for content in (array.tolist(), array.reshape(-1).tolist(), array.tobytes()):
        found = read(("pixels", "UINT8", [1, 2, 2, 3]), content).elements
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("head", "content", "reason"),
    [
        (("colour", "BYTES", [1]), b"", "known are image, pixels, pixel_values, text"),
        (("image", "UINT8", [1, 2, 2, 3]), b"", "image is BYTES"),
        (("image", "BYTES", [-1]), b"", r"\[-1\]"),
        (("image", "BYTES", []), b"", r"\[-1\]"),
        (("image", "BYTES", [0]), b"", r"\[0\] does not fit"),
        (("pixels", "UINT8", [1, 0, HUGE, 3]), b"", "does not fit"),
        (("pixel_values", "FP32", [1, 2, 2, 3]), b"", r"\[-1, 3, -1, -1\]"),
        (("image", "BYTES", [5]), b"", "at most 4"),
        (("text", "BYTES", [HUGE]), b"", "at most 8"),
        (TWO, b"\x01\0\0", "after 0 elements 3 bytes"),
        (TWO, packed(b"a"), "2 elements, and its data has 1"),
        (TWO, packed(*[b""] * 9), "has 2 elements, .* after 2 elements 28 bytes"),  # of millions
        (TWO, LENGTH.pack(2) + b"a", "after 0 elements 5 bytes"),
        (TWO, packed(b"a") + b"\xff\xff\xff\xff", "after 1 elements 4 bytes"),
        (TWO, packed(b"a") + b"c", "after 1 elements 1 bytes"),
        (("pixels", "UINT8", [1, 2, 2, 3]), bytes(11), "has 12 bytes, and its data has 11"),
        (("pixels", "UINT8", [2, HUGE, HUGE, 3]), bytes(11), r"has \d+ bytes"),
        (("pixel_values", "FP32", [1, 3, 1, 1]), bytes(11), "has 12 bytes"),
        (PIXELS, [0, 1], "has 3 elements, and its data has 2"),
        (PIXELS, [], "its data has 0"),
        (PIXELS, [0, 1, 256], "from 0 to 255"),
        (PIXELS, [0, 1, -1], "from 0 to 255"),
        (PIXELS, [0, 1, 2.5], "whole numbers"),
        (PIXELS, [0, 1, True], "whole numbers"),
        (PIXELS, [[0, 1], [2]], "whole numbers"),
        (PIXELS, [0, 1, 10**400], "whole numbers"),
        (PIXELS, [[[0], [1], [2]]], "nested by its shape"),
    ],
)
def test_what_does_not_fit_is_refused(head: Any, content: Any, reason: str) -> None:
    with pytest.raises((InvalidRequest, RequestTooLarge), match=reason):
        read(head, content)


@pytest.mark.parametrize(
    ("head", "content"),
    [
        (TWO, packed(b"a")),
        (TWO, packed(b"a", b"b", b"c")),
        (PIXELS, bytes(2)),
        (PIXELS, [0, 1]),
        (PIXELS, [[[0], [1], [2]]]),
        (PIXELS, [[[[0, 1]]]]),
    ],
)
def test_elements_of_another_number_or_shape_have_the_code_of_sizes(
    head: Any, content: Any
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(head, content)
    assert (caught.value.code, caught.value.param) == ("wrong_size", "inputs[0]")
