"""Zero-shot segmentation scores on scenes with known masks: mIoU, "which of these", intervals.

The protocol is TIPSv2's notebook's: embed each name's prompts, cosine with every patch, bilinear to
the mask's size, argmax, one confusion table over the whole split, background pixels left out.

Shapes: S scenes, K candidate names, N patches, D width, H W pixels, h w patch grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.segmentation import cosine_map, l2_normalize, upsample_bilinear
from training.data.concepts import all_concepts
from training.data.scenes import Scene

# Cosines [K, h, w] of a scene's patches, or [K, 1, 1] for one answer everywhere.
Scorer = Callable[[Scene], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneCounts:
    """Pixel counts by scene; sums of any scenes give that subset's score.

    Attributes:
        hit_SK: Pixels of class k called k.
        truth_SK: Pixels of class k.
        called_SK: Object pixels called k.
        chosen_S: Object pixels given the right one of the names present in the scene.
    """

    hit_SK: NDArray[np.int64]
    truth_SK: NDArray[np.int64]
    called_SK: NDArray[np.int64]
    chosen_S: NDArray[np.int64]

    def miou(self, weights_S: NDArray[np.int64] | None = None) -> float:
        """Mean over classes with a union above 0, in percent."""
        hit, truth, called = (
            table.sum(0) if weights_S is None else weights_S @ table
            for table in (self.hit_SK, self.truth_SK, self.called_SK)
        )
        union = truth + called - hit
        return 100.0 * float((hit / (union + 1e-10))[union > 0].mean())

    def which(self, weights_S: NDArray[np.int64] | None = None) -> float:
        """Accuracy among the objects present, in percent of object pixels."""
        pixels_S = self.truth_SK.sum(1)
        weights_S = np.ones_like(pixels_S) if weights_S is None else weights_S
        return 100.0 * float((weights_S @ self.chosen_S) / (weights_S @ pixels_S))


def class_ids(names: Sequence[str]) -> NDArray[np.int64]:
    """Mask values of names, in the same order."""
    ids = {concept.name: number for number, concept in enumerate(all_concepts(), start=1)}
    return np.asarray([ids[name] for name in names])


def count_scenes(scenes: Sequence[Scene], names: Sequence[str], scorer: Scorer) -> SceneCounts:
    """Score every scene.

    Raises:
        ValueError: A scene shows something that is no candidate.
    """
    ids_K = class_ids(names)
    rows = [_count_scene(scene, ids_K, scorer(scene)) for scene in scenes]
    hit, truth, called, chosen = zip(*rows, strict=True)
    return SceneCounts(
        hit_SK=np.stack(hit),
        truth_SK=np.stack(truth),
        called_SK=np.stack(called),
        chosen_S=np.asarray(chosen),
    )


def _count_scene(
    scene: Scene, ids_K: NDArray[np.int64], cosine_Khw: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    mask_HW = scene.mask_SS
    rows, columns = np.nonzero(mask_HW)
    truth_P = (mask_HW[rows, columns][:, None] == ids_K).argmax(1)
    if not np.array_equal(ids_K[truth_P], mask_HW[rows, columns]):
        raise ValueError("a scene shows an object that is not among the candidate names")
    score_KHW = upsample_bilinear(cosine_Khw, mask_HW.shape)
    score_KP = score_KHW[:, rows, columns]
    called_P = score_KP.argmax(0)
    count = len(ids_K)
    present = np.unique(truth_P)
    chosen = present[score_KP[present].argmax(0)] == truth_P
    return (
        np.bincount(truth_P[called_P == truth_P], minlength=count),
        np.bincount(truth_P, minlength=count),
        np.bincount(called_P, minlength=count),
        int(chosen.sum()),
    )


def patch_scorer(
    features_of: Callable[[Scene], NDArray[np.float32]], classes_KD: NDArray[np.float32], patch: int
) -> Scorer:
    """Score by patch features [N, D]."""

    def score(scene: Scene) -> NDArray[np.float32]:
        side = scene.mask_SS.shape[0] // patch
        return cosine_map(features_of(scene), classes_KD, (side, side))

    return score


def painted_scorer(
    global_of: Callable[[Scene], NDArray[np.float32]], classes_KD: NDArray[np.float32]
) -> Scorer:
    """Score by one global embedding [D] everywhere: the picture's class painted over it."""

    def score(scene: Scene) -> NDArray[np.float32]:
        cosine_K = l2_normalize(classes_KD) @ l2_normalize(global_of(scene))
        return np.asarray(cosine_K[:, None, None], np.float32)

    return score


def largest_object_scorer(names: Sequence[str]) -> Scorer:
    """Call everything by the largest object's name: an oracle that does not localise."""
    ids_K = class_ids(names)

    def score(scene: Scene) -> NDArray[np.float32]:
        pixels_K = (scene.mask_SS[..., None] == ids_K).sum((0, 1))
        return np.asarray(pixels_K[:, None, None], np.float32)

    return score


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % scene-bootstrap interval."""

    value: float
    low: float
    high: float


Metric = Callable[[SceneCounts, NDArray[np.int64] | None], float]


def bootstrap(
    metric: Metric, counts: SceneCounts, other: SceneCounts | None = None, *, seed: int = 0
) -> Interval:
    """Interval of a metric, or of its difference to another model's on the same scenes.

    It covers the choice of scenes only, not the training seed.
    """
    rng = np.random.default_rng(seed)
    num_scenes = len(counts.chosen_S)
    values = []
    for _ in range(1000):
        drawn = rng.integers(num_scenes, size=num_scenes)
        weights = np.bincount(drawn, minlength=num_scenes)
        values.append(
            metric(counts, weights) - (metric(other, weights) if other is not None else 0.0)
        )
    low, high = np.percentile(values, [2.5, 97.5])
    value = metric(counts, None) - (metric(other, None) if other is not None else 0.0)
    return Interval(value=value, low=float(low), high=float(high))
