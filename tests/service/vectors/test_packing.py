"""Vectors in fewer bytes are near what they were."""

import numpy as np
import pytest

from service.outputs.vectors import pack, pack_all

ROWS = np.random.default_rng(0).standard_normal((4, 3, 16)).astype(np.float32)


def test_whole_numbers_times_their_scale_are_within_half_a_step() -> None:
    rows, scales = pack(ROWS, "int8")
    assert scales is not None
    assert (rows.dtype.name, scales.dtype.name) == ("int8", "float32")
    assert scales.shape == (4, 3)
    assert (np.abs(rows).max(axis=-1) == 127).all()
    error = np.abs(rows * scales[..., None] - ROWS)
    assert (error <= scales[..., None] * 0.5001).all()


def test_zeros_stay_zeros_and_one_vector_has_one_scale() -> None:
    rows, scales = pack(np.zeros((2, 5), np.float32), "int8")
    assert scales is not None
    assert not rows.any()
    assert not scales.any()
    _, scale = pack(ROWS[0, 0], "int8")
    assert scale is not None
    assert scale.shape == ()


def test_half_precision_is_rounding_and_float32_is_what_it_was() -> None:
    rows, scales = pack(ROWS, "float16")
    np.testing.assert_array_equal(rows, ROWS.astype(np.float16))
    assert scales is None
    assert pack(ROWS, "float32")[0] is ROWS
    assert np.isinf(pack(np.array([1e6], np.float32), "float16")[0]).all()


@pytest.mark.parametrize("vector_type", ["float32", "float16", "int8"])
def test_all_outputs_of_a_image_are_packed_by_name(vector_type: str) -> None:
    rows, scales = pack_all({"cls1": ROWS[0, 0], "patches": ROWS}, vector_type)  # type: ignore[arg-type]
    assert rows.keys() == {"cls1", "patches"}
    assert {array.dtype.name for array in rows.values()} == {vector_type}
    assert scales.keys() == (rows.keys() if vector_type == "int8" else set())
