"""The protocol: hand-made tables, masks with known scores, and an independent implementation."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from training.data.concepts import all_concepts
from training.data.scenes import Scene
from training.evaluate.zero_shot_segmentation import (
    SceneCounts,
    class_ids,
    count_scenes,
    patch_cosines,
)

PATCH, WIDTH = 14, 8
Masks = list[NDArray[np.int32]]


@pytest.fixture
def masks(scenes: list[Scene]) -> Masks:
    """Of ten scenes."""
    return [scene.mask_SS for scene in scenes]


@pytest.fixture
def classes(names: list[str]) -> NDArray[np.float32]:
    """Random class embeddings."""
    return np.random.default_rng(1).normal(size=(len(names), WIDTH)).astype(np.float32)


def perfect(masks: Masks, names: Sequence[str]) -> list[NDArray[np.float32]]:
    """Score by the masks themselves."""
    ids_K = class_ids(names)
    return [(mask == ids_K[:, None, None]).astype(np.float32) for mask in masks]


def test_a_hand_made_table_has_the_scores_of_its_weighted_scenes() -> None:
    """Three classes, the third in neither of two scenes.

    Scene 0 has 10 pixels of class 0, of which 6 are called 0 and 4 are called 1. Scene 1 has 4
    pixels of class 0 and 6 of class 1, all called 1.
    """
    table = SceneCounts(
        hit_SK=np.asarray([[6.0, 0, 0], [0, 6, 0]]),
        truth_SK=np.asarray([[10.0, 0, 0], [4, 6, 0]]),
        called_SK=np.asarray([[6.0, 4, 0], [0, 10, 0]]),
        chosen_S=np.asarray([10.0, 6]),
        objects_S=np.asarray([1.0, 2.0]),
        overlap_S=np.asarray([0.5, 1.0]),
        outline_S=np.asarray([1.0, 0.5]),
    )
    # Over both scenes: class 0 has 6 / (14 + 6 - 6), class 1 has 6 / (6 + 14 - 6), class 2 none.
    assert table.overall(SceneCounts.miou) == pytest.approx(100 * (6 / 14 + 6 / 14) / 2)
    assert table.overall(SceneCounts.which) == pytest.approx(100 * 16 / 20)
    weights_RS = np.asarray([[2.0, 0.0], [1.0, 1.0]])
    # Only scene 0: class 0 has 6 / 10; class 1 was called, but no scene shows it.
    assert table.miou(weights_RS).tolist() == pytest.approx([60, 100 * 6 / 14])
    assert table.which(weights_RS).tolist() == pytest.approx([100, 80])
    assert table.overlap(weights_RS).tolist() == pytest.approx([50, 50])
    assert table.outline(weights_RS).tolist() == pytest.approx([100, 50])


def test_objects_count_alike_and_lose_what_the_background_gets(
    masks: Masks, names: list[str]
) -> None:
    whole = np.ones((1, len(masks)))
    found = count_scenes(masks, names, perfect(masks, names))
    assert found.overlap(whole) == found.outline(whole) == pytest.approx(100)
    # One name over the whole image: that object has the share of its pixels, all others nothing.
    shown = [np.unique(mask[mask > 0]) for mask in masks]
    painted = [(class_ids(names) == own[0]).astype(np.float32)[:, None, None] for own in shown]
    found = count_scenes(masks, names, painted)
    pairs = zip(masks, shown, strict=True)
    share = sum((mask == own[0]).mean() for mask, own in pairs) / sum(map(len, shown))
    assert found.overlap(whole) == pytest.approx(100 * share)
    assert found.outline(whole) == 0


def test_names_that_no_scene_shows_lower_no_score(
    scenes: list[Scene], masks: Masks, names: list[str]
) -> None:
    """A candidate that is only ever called wrongly costs its pixels, not an IoU of 0 in the mean.

    Each pixel of one shown name is given a name that is never shown; all other pixels are right.
    """
    shown = sorted({name for scene in scenes for name in scene.captions.names})
    absent = next(concept.name for concept in all_concepts() if concept.name not in names)
    more, target = [*names, absent], names.index(shown[0])
    scores = perfect(masks, more)
    for score_KHW in scores:
        score_KHW[-1] = 2 * score_KHW[target]
    counts = count_scenes(masks, more, scores)
    assert counts.called_SK[:, -1].any()
    assert counts.overall(SceneCounts.miou) == pytest.approx(100 * (len(shown) - 1) / len(shown))
    # A guess among K names: the mean is over the shown ones.
    share_K = counts.truth_SK.sum(0) / counts.truth_SK.sum()
    share_K = share_K[share_K > 0]
    expected = (share_K / (1 + len(more) * share_K - share_K)).mean()
    assert counts.guessed().overall(SceneCounts.miou) == pytest.approx(100 * expected)


def test_counts_equal_a_plain_implementation_with_torch(
    masks: Masks, names: list[str], classes: NDArray[np.float32]
) -> None:
    side = masks[0].shape[0]
    grid = side // PATCH
    rng = np.random.default_rng(0)
    features_SND = rng.normal(size=(len(masks), grid * grid, WIDTH)).astype(np.float32)
    counts = count_scenes(masks, names, patch_cosines(features_SND, classes))
    ids = class_ids(names).tolist()
    confusion = np.zeros((len(names), len(names)), np.int64)
    num_right = 0
    for mask, features_ND in zip(masks, features_SND, strict=True):
        unit_ND = F.normalize(torch.from_numpy(features_ND), dim=1)
        cosine_NK = unit_ND @ F.normalize(torch.from_numpy(classes), dim=1).T
        cosine_1Khw = cosine_NK.T.reshape(1, len(names), grid, grid)
        score_KHW = F.interpolate(cosine_1Khw, (side, side), mode="bilinear")[0]
        present = sorted({ids.index(value) for value in np.unique(mask) if value})
        for row, column in np.argwhere(mask > 0):
            truth = ids.index(mask[row, column])
            score_K = score_KHW[:, row, column]
            confusion[truth, int(score_K.argmax())] += 1
            num_right += present[int(score_K[present].argmax())] == truth
    union_K = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    shown_K = confusion.sum(1) > 0
    iou_K = confusion.diagonal()[shown_K] / union_K[shown_K]
    assert counts.hit_SK.sum(0).tolist() == confusion.diagonal().tolist()
    assert counts.called_SK.sum(0).tolist() == confusion.sum(0).tolist()
    assert counts.overall(SceneCounts.miou) == pytest.approx(100 * iou_K.mean())
    assert counts.overall(SceneCounts.which) == pytest.approx(100 * num_right / confusion.sum())
