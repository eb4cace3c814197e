"""The protocol: hand-made tables, scorers with known scores, and an independent implementation."""

from collections.abc import Callable, Sequence

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
    largest_object_scorer,
    painted_scorer,
    patch_scorer,
)

PATCH = 14
WIDTH = 8


@pytest.fixture
def table() -> SceneCounts:
    """Two scenes, three classes, the third in neither.

    Scene 0 has 10 pixels of class 0, of which 6 are called 0 and 4 are called 1. Scene 1 has 4
    pixels of class 0 and 6 of class 1, all called 1.
    """
    return SceneCounts(
        hit_SK=np.asarray([[6, 0, 0], [0, 6, 0]]),
        truth_SK=np.asarray([[10, 0, 0], [4, 6, 0]]),
        called_SK=np.asarray([[6, 4, 0], [0, 10, 0]]),
        chosen_S=np.asarray([10, 6]),
    )


@pytest.fixture
def features(scenes: list[Scene]) -> dict[int, NDArray[np.float32]]:
    """Random patch features of each scene, by identity."""
    rng = np.random.default_rng(0)
    grid = scenes[0].mask_SS.shape[0] // PATCH
    return {id(scene): rng.normal(size=(grid * grid, WIDTH)).astype(np.float32) for scene in scenes}


@pytest.fixture
def classes(names: list[str]) -> NDArray[np.float32]:
    """Random class embeddings."""
    return np.random.default_rng(1).normal(size=(len(names), WIDTH)).astype(np.float32)


def perfect(names: Sequence[str]) -> Callable[[Scene], NDArray[np.float32]]:
    """Score by the mask itself."""
    ids_K = class_ids(names)
    return lambda scene: (scene.mask_SS == ids_K[:, None, None]).astype(np.float32)


def test_a_hand_made_table_has_the_scores_of_its_weighted_scenes(table: SceneCounts) -> None:
    # Over both scenes: class 0 has 6 / (14 + 6 - 6), class 1 has 6 / (6 + 14 - 6), class 2 none.
    assert table.miou() == pytest.approx(100 * (6 / 14 + 6 / 14) / 2)
    assert table.which() == pytest.approx(100 * 16 / 20)
    weights_RS = np.asarray([[2.0, 0.0], [1.0, 1.0]])
    # Only scene 0: class 0 has 6 / 10; class 1 was called, but no scene shows it.
    expected = [100 * 0.6, table.miou()]
    assert table.miou(weights_RS).tolist() == pytest.approx(expected)
    assert table.which(weights_RS).tolist() == pytest.approx([100.0, table.which()])
    assert len(table) == 2


def test_names_that_no_scene_shows_lower_no_score(
    scenes: list[Scene], names: list[str], classes: NDArray[np.float32]
) -> None:
    """A candidate that is only ever called wrongly costs its pixels, not an IoU of 0 in the mean.

    Each pixel of one shown name is given a name that is never shown; all other pixels are right.
    """
    shown = sorted({name for scene in scenes for name in scene.captions.names})
    absent = next(concept.name for concept in all_concepts() if concept.name not in names)
    more, target = [*names, absent], names.index(shown[0])

    def score(scene: Scene) -> NDArray[np.float32]:
        score_KHW = perfect(more)(scene)
        score_KHW[-1] = 2 * score_KHW[target]
        return score_KHW

    counts = count_scenes(scenes, more, score)
    assert counts.called_SK[:, -1].any()
    assert counts.miou() == pytest.approx(100 * (len(shown) - 1) / len(shown))
    # A guess among K names: the mean is over the shown ones.
    share_K = counts.truth_SK.sum(0) / counts.truth_SK.sum()
    share_K = share_K[share_K > 0]
    expected = (share_K / (1 + len(more) * share_K - share_K)).mean()
    assert counts.guessed().miou() == pytest.approx(100 * expected)


def test_random_guesses_score_as_computed(scenes: list[Scene], names: list[str]) -> None:
    """Guess every pixel's name with a random score, among all names and among those present."""
    rng = np.random.default_rng(0)

    def guess(scene: Scene) -> NDArray[np.float32]:
        return rng.random((len(names), *scene.mask_SS.shape), dtype=np.float32)

    guessed = count_scenes(scenes, names, guess)
    expected = guessed.guessed()
    assert guessed.miou() == pytest.approx(expected.miou(), rel=0.06)
    assert guessed.which() == pytest.approx(expected.which(), rel=0.03)


def test_a_perfect_scorer_reaches_100_percent_and_needs_every_name(
    scenes: list[Scene], names: list[str]
) -> None:
    counts = count_scenes(scenes, names, perfect(names))
    assert counts.miou() == pytest.approx(100.0)
    assert counts.which() == 100.0
    rest = [name for name in names if name != scenes[0].captions.names[0]]
    with pytest.raises(ValueError, match="not among the candidate names"):
        count_scenes(scenes, rest, perfect(rest))


def test_the_largest_object_is_painted(scenes: list[Scene], names: list[str]) -> None:
    counts = count_scenes(scenes, names, largest_object_scorer(names))
    largest_S = counts.truth_SK.max(1)
    assert counts.hit_SK.sum(1).tolist() == largest_S.tolist()
    assert counts.chosen_S.tolist() == largest_S.tolist()
    assert counts.which() == pytest.approx(100 * largest_S.sum() / counts.truth_SK.sum())


def test_painting_gives_every_pixel_the_nearest_class(
    scenes: list[Scene], names: list[str], classes: NDArray[np.float32]
) -> None:
    # A global embedding along class 4, at any length, whatever the classes' lengths.
    scorer = painted_scorer(lambda _: 7 * classes[4], classes * np.float32(3))
    counts = count_scenes(scenes, names, scorer)
    assert counts.called_SK[:, 4].tolist() == counts.truth_SK.sum(1).tolist()
    assert scorer(scenes[0]).shape == (len(names), 1, 1)


def test_counts_equal_a_plain_implementation_with_torch(
    scenes: list[Scene],
    names: list[str],
    features: dict[int, NDArray[np.float32]],
    classes: NDArray[np.float32],
) -> None:
    scorer = patch_scorer(lambda scene: features[id(scene)], classes)
    counts = count_scenes(scenes, names, scorer)
    ids = class_ids(names).tolist()
    confusion = np.zeros((len(names), len(names)), np.int64)
    num_right = 0
    for scene in scenes:
        unit_ND = F.normalize(torch.from_numpy(features[id(scene)]), dim=1)
        cosine_NK = unit_ND @ F.normalize(torch.from_numpy(classes), dim=1).T
        side = scene.mask_SS.shape[0]
        grid = cosine_NK.T.reshape(1, len(names), side // PATCH, side // PATCH)
        score_KHW = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)[0]
        present = sorted({ids.index(value) for value in np.unique(scene.mask_SS) if value})
        for row, column in np.argwhere(scene.mask_SS > 0):
            truth = ids.index(scene.mask_SS[row, column])
            score_K = score_KHW[:, row, column]
            confusion[truth, int(score_K.argmax())] += 1
            num_right += present[int(score_K[present].argmax())] == truth
    union_K = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    shown_K = confusion.sum(1) > 0
    iou_K = confusion.diagonal()[shown_K] / union_K[shown_K]
    assert counts.hit_SK.sum(0).tolist() == confusion.diagonal().tolist()
    assert counts.truth_SK.sum(0).tolist() == confusion.sum(1).tolist()
    assert counts.called_SK.sum(0).tolist() == confusion.sum(0).tolist()
    assert counts.miou() == pytest.approx(100 * iou_K.mean())
    assert counts.which() == pytest.approx(100 * num_right / confusion.sum())
