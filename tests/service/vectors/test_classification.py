"""Which class an image shows."""

import numpy as np
import pytest

from service.outputs.vectors import classify

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
