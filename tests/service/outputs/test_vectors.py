"""Classification, and embeddings in fewer bytes."""

import numpy as np
import pytest

from model.segmentation import PooledClasses
from service.outputs.vectors import classify, pack

CLASSES = PooledClasses(np.eye(4, dtype=np.float32), [1, 1, 1, 1])
EMBEDDING = np.array([1, 3, 2, 2], np.float32)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("top_k", [2, 99, None])
def test_probabilities_are_a_softmax_of_cosines_and_the_best_comes_first(
    temperature: float, top_k: int | None
) -> None:
    found = classify(EMBEDDING, CLASSES, temperature=temperature, top_k=top_k)
    assert found.labels_K.tolist() == [2, 3, 4, 1][:top_k]
    cosines = EMBEDDING / np.linalg.norm(EMBEDDING)
    exponents = np.exp(cosines / temperature)
    np.testing.assert_allclose(found.cosines_K, cosines[[1, 2, 3, 0]][:top_k], rtol=1e-6)
    expected = (exponents / exponents.sum())[[1, 2, 3, 0]][:top_k]
    np.testing.assert_allclose(found.probabilities_K, expected, rtol=1e-5)
    cold = classify(EMBEDDING, CLASSES, temperature=1e-4, top_k=None)
    assert cold.probabilities_K.tolist() == [1, 0, 0, 0], "no overflow"


ROWS = np.random.default_rng(0).standard_normal((4, 3, 16)).astype(np.float32)


def test_packed_rows_times_their_scale_are_within_half_a_step() -> None:
    rows, scales = pack(ROWS, "int8")
    assert scales is not None
    assert (rows.dtype.name, scales.dtype.name, scales.shape) == ("int8", "float32", (4, 3))
    assert (np.abs(rows).max(axis=-1) == 127).all()
    error = np.abs(rows * scales[..., None] - ROWS)
    assert (error <= scales[..., None] * 0.5001).all()
    zeros, none = pack(np.zeros(5, np.float32), "int8")
    assert none is not None
    assert none.shape == ()
    assert not zeros.any()
    assert not none.any()
    halves, scales = pack(ROWS, "float16")
    np.testing.assert_array_equal(halves, ROWS.astype(np.float16))
    assert scales is None
    assert pack(ROWS, "float32")[0] is ROWS
    assert np.isinf(pack(np.array([1e6], np.float32), "float16")[0]).all()
