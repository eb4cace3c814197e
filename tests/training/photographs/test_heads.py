"""Closed-form heads against sets whose answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.photographs import heads
from training.photographs.heads import (
    Moments,
    class_axes,
    class_names,
    fit_discriminant,
    join,
    merged,
)


def cells(noise: NDArray[np.float64]) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Three names that differ in the first two features only."""
    rng = np.random.default_rng(0)
    name_n = np.repeat(np.arange(3), 400)
    means = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [-1, -1, 0, 0]])
    values = means[name_n] + rng.normal(size=(1200, 4)) * noise
    return values.astype(np.float16), name_n


def test_whitening_shrinks_features_that_vary_within_a_name() -> None:
    values, name_n = cells(np.array([0.1, 0.1, 3.0, 0.1]))
    fitted = fit_discriminant(Moments.of(values, name_n, 4))
    whitened = (values.astype(np.float32) - fitted.mean_F) @ fitted.whitening_FF
    within = np.concatenate([whitened[name_n == k] - fitted.means_KF[k] for k in range(3)])
    assert within.std(0).max() < 1.01  # shrinkage leaves the quiet features below one
    assert np.all(fitted.means_KF[3] == 0)  # a name without cells


def test_a_cell_is_closest_to_its_name() -> None:
    values, name_n = cells(np.array([0.2, 0.2, 2.0, 2.0]))
    fitted = fit_discriminant(Moments.of(values, name_n, 3))
    space = join(fitted, fitted, 2)
    wide = values.astype(np.float32) - space.fine_mean_F
    described = wide @ space.fine_DF.T + wide @ space.coarse_DF.T
    found = (described @ space.names_KD.T).argmax(1)
    assert (found == name_n).mean() > 0.97
    assert np.allclose(np.linalg.norm(space.names_KD, axis=1), 1)


def test_moments_of_parts_add_up() -> None:
    values, name_n = cells(np.array([0.1, 0.1, 3.0, 0.1]))
    whole = fit_discriminant(Moments.of(values, name_n, 3))
    parts = fit_discriminant(
        Moments.of(values[:500], name_n[:500], 3) + Moments.of(values[500:], name_n[500:], 3)
    )
    assert np.allclose(parts.whitening_FF, whole.whitening_FF, atol=1e-4)
    centred = values - np.stack([values[name_n == k].mean(0, np.float64) for k in range(3)])[name_n]
    within = centred.T @ centred / len(values)
    within += np.eye(4) * heads._SHRINKAGE * np.trace(within) / 4
    assert np.allclose(whole.whitening_FF.T @ within @ whole.whitening_FF, np.eye(4), atol=1e-2)


def test_a_group_of_names_is_between_its_members() -> None:
    vectors = np.eye(3, dtype=np.float32)
    group = merged(vectors, [[0], [0, 2]])
    assert group[0].tolist() == [1, 0, 0]
    assert group[1] == pytest.approx([0.7071, 0, 0.7071], abs=1e-4)


def test_names_of_classes_find_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(1000, 64)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    axes = class_axes(embeddings, 900)
    assert np.allclose(axes @ axes.T, np.eye(900), atol=1e-4)
    names = class_names([[5], [5, 7], [9]], axes)
    probabilities = np.zeros(1000, np.float32)
    probabilities[5] = 1
    scores = names @ (axes @ probabilities)
    assert scores[0] > scores[1] > abs(scores[2])
