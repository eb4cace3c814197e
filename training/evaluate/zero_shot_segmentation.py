"""Zero-shot segmentation scores on scenes with known masks: mIoU and "which of these".

The protocol is that of TIPSv2's notebook: embed each name's prompts, cosine with every patch,
bilinear interpolation to the mask's size, argmax, one confusion table over the whole split without
background pixels. The mean is over the names that some scene shows; all candidates can be called.
Objects are scored with background as well, among the scene's names and six others.

Shapes: R resamples of the scenes, S scenes, K candidate names, N patches, D width, P object pixels
of a scene, H W pixels, h w patch grid.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.scores.objects import (
    absent_names,
    boundary_f,
    fitted_thresholds,
    iou,
    iou_curve,
    objects_of,
)
from model.scores.pixels import BACKGROUND, NO_CLASS, Floats, Pixels, count_pixels
from model.segmentation import cosine_map, l2_normalize, upsample_bilinear
from training.data.concepts import all_concepts

Weights = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneCounts(Pixels):
    """Pixel counts by scene; the score of a subset follows from the sums over its scenes.

    Only pixels of objects count.

    Attributes:
        chosen_S: Object pixels with the right prediction among the names in the scene.
        objects_S: Number of objects.
        overlap_S: Sum of the objects' IoU with background; see `model.scores.objects`.
        outline_S: Sum of their boundary F.
    """

    chosen_S: Floats
    objects_S: Floats
    overlap_S: Floats
    outline_S: Floats

    def overall(self, score: "Callable[[SceneCounts, Weights], Floats]") -> float:
        """A score of all scenes, such as `SceneCounts.miou`."""
        return float(score(self, np.ones((1, len(self))))[0])

    def miou(self, weights_RS: Weights) -> Floats:
        """Mean over the classes that the scenes show, in percent [R].

        Pixels that are called by the name of another class are in the union of their own. Counting
        that other class as an IoU of 0 would make the score depend on the number of candidates that
        no scene shows.
        """
        shown_RK = weights_RS @ self.truth_SK > 0
        values_R: Floats = self.iou(weights_RS).mean(1, where=shown_RK)
        return values_R

    def which(self, weights_RS: Weights) -> Floats:
        """Accuracy among the objects present, in percent of object pixels [R]."""
        values_R: Floats = 100.0 * (
            (weights_RS @ self.chosen_S) / (weights_RS @ self.truth_SK.sum(1))
        )
        return values_R

    def overlap(self, weights_RS: Weights) -> Floats:
        """Mean IoU of the objects with background counted, in percent [R]."""
        values_R: Floats = 100.0 * (weights_RS @ self.overlap_S) / (weights_RS @ self.objects_S)
        return values_R

    def outline(self, weights_RS: Weights) -> Floats:
        """Mean boundary F of the objects, in percent [R]."""
        values_R: Floats = 100.0 * (weights_RS @ self.outline_S) / (weights_RS @ self.objects_S)
        return values_R

    def guessed(self) -> "SceneCounts":
        """Count what blind guesses are expected to get in the same scenes.

        Every object pixel is given one of the K names by itself, all alike; "which" is given one
        of the names present. A class of a share p of all pixels then has an IoU of about
        p / (1 + K p - p), so K classes of equal shares have 1 / (2 K - 1).
        """
        num_names = self.truth_SK.shape[1]
        pixels_S = self.truth_SK.sum(1)
        called_S1 = pixels_S[:, None] / num_names
        unknown_S = np.full(len(self), np.nan)
        return replace(
            self,
            overlap_S=unknown_S,
            outline_S=unknown_S,
            hit_SK=self.truth_SK / num_names,
            called_SK=np.broadcast_to(called_S1, self.truth_SK.shape),
            chosen_S=pixels_S / (self.truth_SK > 0).sum(1),
        )


def class_ids(names: Sequence[str]) -> NDArray[np.int64]:
    """Mask values of names, in the same order."""
    ids = {concept.name: number for number, concept in enumerate(all_concepts(), start=1)}
    return np.asarray([ids[name] for name in names])


def count_scenes(
    masks: Iterable[NDArray[np.integer]],
    names: Sequence[str],
    cosines: Iterable[NDArray[np.float32]],
) -> SceneCounts:
    """Score every scene.

    Args:
        masks: [H, W] each; see `Scene.mask_SS`.
        names: The candidates.
        cosines: Of each scene, [K, h, w] of its patches, or [K, 1, 1] for one answer everywhere.

    Raises:
        ValueError: A scene shows something that is no candidate.
    """
    ids_K = class_ids(names)
    counts, chosen, objects = [], [], []
    for index, (mask_HW, cosine_Khw) in enumerate(zip(masks, cosines, strict=True)):
        score_KHW = _upsampled(cosine_Khw, mask_HW.shape)
        truth_HW = _places(mask_HW, ids_K)
        counts.append(count_pixels(truth_HW, score_KHW.argmax(0), len(ids_K))[1])
        chosen.append(_count_chosen(truth_HW, score_KHW))
        objects.append(_SceneObjects.of(mask_HW, ids_K, score_KHW, f"scene {index}"))
    pixels = Pixels.of(counts)
    thresholds_S = fitted_thresholds([one.curves for one in objects])
    found = [one.scores(threshold) for one, threshold in zip(objects, thresholds_S, strict=True)]
    return SceneCounts(
        hit_SK=pixels.hit_SK,
        truth_SK=pixels.truth_SK,
        called_SK=pixels.called_SK,
        chosen_S=np.asarray(chosen, np.float64),
        objects_S=np.asarray([len(one.curves) for one in objects], np.float64),
        overlap_S=np.asarray([overlap for overlap, _ in found]),
        outline_S=np.asarray([outline for _, outline in found]),
    )


def _upsampled(cosine_Khw: NDArray[np.float32], size_hw: tuple[int, ...]) -> NDArray[np.float32]:
    if cosine_Khw.shape[1:] == (1, 1):  # one answer for all pixels
        return np.broadcast_to(cosine_Khw, (len(cosine_Khw), *size_hw))
    return upsample_bilinear(cosine_Khw, (size_hw[0], size_hw[1]))


@dataclass(frozen=True, slots=True)
class _SceneObjects:
    """The mask of a scene's names and of six absent ones, until its threshold is known."""

    truth_HW: NDArray[np.int64]
    called_HW: NDArray[np.int64]
    score_HW: NDArray[np.float32]
    curves: list[NDArray[np.float64]]

    @classmethod
    def of(
        cls,
        mask_HW: NDArray[np.integer],
        ids_K: NDArray[np.int64],
        score_KHW: NDArray[np.float32],
        example: str,
    ) -> "_SceneObjects":
        truth_HW = np.where(mask_HW == 0, BACKGROUND, mask_HW).astype(np.int64)
        shown = objects_of(truth_HW)
        names = {str(one): place for place, one in enumerate(ids_K.tolist())}
        absent = absent_names(names, map(str, shown), example)
        asked = [names[one] for one in (*map(str, shown), *absent)]
        called_HW = ids_K[asked][score_KHW[asked].argmax(0)]
        score_HW = score_KHW[asked].max(0)
        curves = [iou_curve(truth_HW, called_HW, score_HW, one) for one in shown]
        return cls(truth_HW, called_HW, score_HW, curves)

    def scores(self, threshold: float) -> tuple[float, float]:
        """Sums of the objects' IoU and boundary F."""
        found_HW = np.where(self.score_HW < threshold, BACKGROUND, self.called_HW)
        shown = objects_of(self.truth_HW)
        return (
            sum(iou(self.truth_HW, found_HW, one) for one in shown),
            sum(boundary_f(self.truth_HW, found_HW, one) for one in shown),
        )


def _places(mask_HW: NDArray[np.integer], ids_K: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of each pixel's name among the candidates, `NO_CLASS` for the background."""
    place_of = np.full(max(int(mask_HW.max()), int(ids_K.max())) + 1, NO_CLASS)
    place_of[ids_K] = np.arange(len(ids_K))
    truth_HW: NDArray[np.int64] = place_of[mask_HW]
    if (truth_HW[mask_HW > 0] == NO_CLASS).any():
        raise ValueError("a scene shows an object that is not among the candidate names")
    return truth_HW


def _count_chosen(truth_HW: NDArray[np.int64], score_KHW: NDArray[np.float32]) -> int:
    """Pixels whose name has the highest score among the names in the scene."""
    shown_HW = truth_HW != NO_CLASS
    truth_P, score_KP = truth_HW[shown_HW], score_KHW[:, shown_HW]
    present = np.unique(truth_P)
    return int((present[score_KP[present].argmax(0)] == truth_P).sum())


def patch_cosines(
    features_SND: NDArray[np.float32], classes_KD: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """Of each scene's patches, which lie in a square grid, [K, h, w]."""
    side = math.isqrt(features_SND.shape[1])
    return (cosine_map(features_ND, classes_KD, (side, side)) for features_ND in features_SND)


def painted_cosines(
    global_SD: NDArray[np.float32], classes_KD: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """Of each scene's global embedding, [K, 1, 1]: the image's class painted over it."""
    return iter((l2_normalize(global_SD) @ l2_normalize(classes_KD).T)[:, :, None, None])


def largest_object(
    masks: Iterable[NDArray[np.integer]], names: Sequence[str]
) -> Iterator[NDArray[np.float32]]:
    """Everything has the largest object's name, [K, 1, 1]: an oracle that does not localise."""
    ids_K = class_ids(names)
    for mask_HW in masks:
        pixels_K = (mask_HW[..., None] == ids_K).sum((0, 1))
        yield np.asarray(pixels_K[:, None, None], np.float32)
