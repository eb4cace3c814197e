"""Fitting heads to labelled embeddings."""

import numpy as np

from model.segmentation import l2_normalize
from training.label_head import Labelled, fit, fit_head


def clusters(num_images: int) -> Labelled:
    """Three classes around directions that differ from a common one; class 2 is rare."""
    rng = np.random.default_rng(0)
    centre_KD = rng.normal(size=(3, 16)) + 4 * np.ones(16)
    label_P = rng.choice(3, 40 * num_images, p=[0.6, 0.35, 0.05])
    features = l2_normalize(
        (centre_KD[label_P] + 0.3 * rng.normal(size=(len(label_P), 16))).astype(np.float32)
    )
    shares = np.eye(3, dtype=np.float32)[label_P]
    return Labelled(features, shares, np.repeat(np.arange(num_images), 40))


def test_classes_are_found_again_on_other_images_and_wrong_labels_are_not() -> None:
    labelled = clusters(10)
    classes_KD, _, held_out = fit_head(labelled)
    assert held_out is not None
    assert held_out.iou_K.min() > 80
    assert np.allclose(np.linalg.norm(classes_KD, axis=1), 1, atol=1e-5)
    winner = (labelled.features_PD @ classes_KD.T).argmax(1)
    assert (winner == labelled.shares_PK.argmax(1)).mean() > 0.95
    mixed = np.random.default_rng(0).permutation(labelled.shares_PK)
    _, _, wrong = fit_head(Labelled(labelled.features_PD, mixed, labelled.image_P))
    assert wrong is not None
    assert wrong.iou_K.mean() < 45


def test_too_few_images_hold_none_out_and_a_fit_is_deterministic() -> None:
    assert fit_head(clusters(4))[2] is None
    assert np.array_equal(fit(clusters(3), 10), fit(clusters(3), 10))
