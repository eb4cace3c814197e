"""Classification, and embeddings in fewer bytes."""

import numpy as np
import pytest

from service.outputs.vectors import classify, pack, pack_all

# Which class an image shows.

CLASSES = np.eye(4, dtype=np.float32)
EMBEDDING = np.array([1, 3, 2, 2], np.float32)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0])
def test_probabilities_are_a_softmax_of_cosines_and_the_best_comes_first(
    temperature: float,
) -> None:
    found = classify(EMBEDDING, CLASSES, temperature=temperature, top_k=None)
    assert found.labels_K.tolist() == [2, 3, 4, 1]
    cosines = EMBEDDING / np.linalg.norm(EMBEDDING)
    exponents = np.exp(cosines / temperature)
    np.testing.assert_allclose(found.cosines_K, cosines[[1, 2, 3, 0]], rtol=1e-6)
    expected = (exponents / exponents.sum())[[1, 2, 3, 0]]
    np.testing.assert_allclose(found.probabilities_K, expected, rtol=1e-5)


def test_fewer_classes_keep_their_share_of_all() -> None:
    every = classify(EMBEDDING, CLASSES, temperature=0.3, top_k=None)
    two = classify(EMBEDDING, CLASSES, temperature=0.3, top_k=2)
    assert two.labels_K.tolist() == [2, 3]
    np.testing.assert_array_equal(two.probabilities_K, every.probabilities_K[:2])
    assert len(classify(EMBEDDING, CLASSES, temperature=0.3, top_k=99).labels_K) == 4


def test_the_smallest_temperature_overflows_nothing() -> None:
    found = classify(EMBEDDING, CLASSES, temperature=1e-4, top_k=None)
    assert found.probabilities_K.tolist() == [1, 0, 0, 0]


# Vectors in fewer bytes are near what they were.

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
