"""Input tensors from clients are read exactly or refused."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest, RequestTooLarge, ServiceError
from service.open_inference.tensors import (
    LENGTH,
    TensorHead,
    check_head,
    read_items,
    read_raw,
    read_values,
)
from tests.service.conftest import LIMITS

HUGE = 2**62


def head_of(name: str, datatype: str, shape: list[int]) -> TensorHead:
    return check_head(name, datatype, shape, LIMITS, param="inputs[0]")


def packed(*items: bytes) -> bytes:
    return b"".join(LENGTH.pack(len(item)) + item for item in items)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4))
def test_bytes_come_back_as_they_were_packed(items: list[bytes]) -> None:
    head = head_of("image", "BYTES", [len(items)])
    assert read_raw(head, packed(*items)).elements == tuple(items)
    assert read_items(head, items).elements == tuple(items)


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
        read = read_raw(head_of(name, datatype, shape), raw).elements
        assert raw == (packed(*read) if isinstance(read, tuple) else read.tobytes())


@given(
    st.recursive(
        st.integers() | st.floats() | st.text(max_size=3) | st.booleans() | st.none(),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=20,
    )
)
def test_any_values_are_read_or_refused(values: Any) -> None:
    for head in (
        head_of("pixels", "UINT8", [1, 1, 1, 3]),
        head_of("pixel_values", "FP32", [1, 3, 1, 1]),
    ):
        with suppress(InvalidRequest):
            read_values(head, values)


def test_numbers_come_flat_or_nested() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    head = head_of("pixels", "UINT8", [1, 2, 2, 3])
    for tensor in (
        read_values(head, array.tolist()),
        read_values(head, array.reshape(-1).tolist()),
        read_raw(head, array.tobytes()),
    ):
        assert isinstance(tensor.elements, np.ndarray)
        assert tensor.elements.dtype == np.uint8
        np.testing.assert_array_equal(tensor.elements, array)


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "reason"),
    [
        ("colour", "BYTES", [1], "known are image, pixels, pixel_values, text"),
        ("image", "UINT8", [1, 2, 2, 3], "image is BYTES"),
        ("image", "BYTES", [-1], r"\[-1\]"),
        ("image", "BYTES", [], r"\[-1\]"),
        ("image", "BYTES", [0], "at least one"),
        ("pixels", "UINT8", [1, 0, HUGE, 3], "at least one"),
        ("pixel_values", "FP32", [1, 2, 2, 3], r"\[-1, 3, -1, -1\]"),
        ("image", "BYTES", [5], "at most 4"),
        ("text", "BYTES", [HUGE], "at most 8"),
    ],
)
def test_a_wrong_head_is_refused(name: str, datatype: str, shape: list[int], reason: str) -> None:
    with pytest.raises((InvalidRequest, RequestTooLarge), match=reason):
        head_of(name, datatype, shape)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x01\0\0", "after 0 elements 3 bytes"),
        (packed(b"a"), "after 1 elements 0 bytes"),
        (LENGTH.pack(2) + b"a", "after 0 elements 5 bytes"),
        (packed(b"a") + b"\xff\xff\xff\xff", "after 1 elements 4 bytes"),
        (packed(b"a", b"b") + b"c", "after 2 elements 1 bytes"),
    ],
)
def test_the_error_of_a_wrong_length_has_its_position(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        read_raw(head_of("image", "BYTES", [2]), raw)
    assert caught.value.code == "wrong_size"


@pytest.mark.parametrize("shape", [[1, 1, 2, 3], [1, 2, 2, 3], [HUGE % 5, HUGE, HUGE, 3]])
def test_pixels_of_another_number_of_bytes_are_refused(shape: list[int]) -> None:
    with pytest.raises(InvalidRequest, match=r"takes \d+ bytes, not 11"):
        read_raw(head_of("pixels", "UINT8", shape), bytes(11))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0, 1], "has 3 elements, and its data has 2"),
        ([0, 1, 256], "from 0 to 255"),
        ([0, 1, -1], "from 0 to 255"),
        ([0, 1, 2.5], "whole numbers"),
        ([0, 1, True], "whole numbers"),
        ([[0, 1], [2]], "whole numbers"),
        ([0, 1, 10**400], "whole numbers"),
        ([[[0], [1], [2]]], "has 3 elements"),
        ([], "its data has 0"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read_values(head_of("pixels", "UINT8", [1, 1, 1, 3]), values)
