"""Scores of dense heads for the model card; defined as in `tipserve evaluate`.

Shapes: R resamples, S images, K metrics or classes, h w and H W rows and columns of a head's output
and of an image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from model.dense_maps import make_map
from model.graphs import DenseTask
from model.labelled.sets import DEPTH, NORMALS, OWN_SEGMENTATION
from model.manifest import ScoreEntry
from model.scores.bootstrap import bootstrap
from model.scores.pixels import Pixels, angles, count_pixels, depth_scores
from model.winner_map import find_winners
from training.dense.encoder import Embeddings
from training.dense.head import EmbeddingHead

TASK_NAMES: Final[Mapping[DenseTask, str]] = {
    "depth": DEPTH,
    "normals": NORMALS,
    "segmentation": OWN_SEGMENTATION,
}
HEAD, MEAN = "head", "training mean"

Floats = NDArray[np.float64]
# Raw output of a head, as `Runtime.estimate` returns it for one image.
RawMap = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ImageSums:
    """For each image the sum of each metric and the count that divides it."""

    sum_SK: Floats
    count_S: Floats

    def __len__(self) -> int:
        return len(self.count_S)


Counts = ImageSums | Pixels
Metric = Callable[[Any, Floats], Floats]


def _mean(column: int, factor: float = 1) -> Metric:
    """Means of a metric under each row of weights [R]."""

    def mean(sums: ImageSums, weights_RS: Floats) -> Floats:
        # A resample of few images may have none that counts.
        count_R = np.maximum(weights_RS @ sums.count_S, 1)
        values_R: Floats = factor * (weights_RS @ sums.sum_SK[:, column]) / count_R
        return values_R

    return mean


METRICS: Final[Mapping[DenseTask, Mapping[str, Metric]]] = {
    "depth": {"RMSE (m)": _mean(0), "AbsRel (%)": _mean(1, 100), "delta1 (%)": _mean(2, 100)},
    "normals": {"mean angle (degrees)": _mean(0), "under 30 degrees (%)": _mean(1, 100)},
    "segmentation": {"mIoU": Pixels.miou, "pixel accuracy": Pixels.accuracy},
}


def raw_map(head: EmbeddingHead, image: Embeddings) -> RawMap:
    """The head's output for the embeddings of one image."""
    with torch.inference_mode():
        cls, patches = (
            torch.from_numpy(part.astype(np.float32)) for part in (image.cls_PD, image.patches_PhwD)
        )
        raw: RawMap = head(cls[:, None], patches[:, None])[0].numpy()
        return raw


def measure(task: DenseTask, raw: RawMap, truth: NDArray[Any]) -> NDArray[Any]:
    """Compare a map, scaled as the service does, with what is true of each pixel.

    Args:
        task: Of the head.
        raw: Its output.
        truth: Depth [H, W] or normals [H, W, 3], not finite where there is none; or classes [H, W]
            from 0, negative for none.

    Returns:
        Sums and their count; of segmentation hits, true and predicted pixels [3, K].
    """
    size_hw = truth.shape[0], truth.shape[1]
    if task == "segmentation":
        called_HW = find_winners(raw.transpose(1, 2, 0), size_hw).labels_HW.astype(np.int64) - 1
        return count_pixels(truth, called_HW, len(raw))[1]
    counts_HW = np.isfinite(truth if task == "depth" else truth[..., 0])
    found = make_map(task, raw, size_hw)[counts_HW].astype(np.float64)
    true = truth[counts_HW].astype(np.float64)
    if task == "depth":
        return np.array(depth_scores(found, true))
    angle_P = angles(found, true)
    return np.array([angle_P.sum(), (angle_P < 30).sum(), len(angle_P)])


def counts_of(task: DenseTask, rows: Sequence[NDArray[Any]]) -> Counts:
    """What `measure` returned for each image."""
    if task == "segmentation":
        return Pixels.of(rows)
    table = np.stack(rows).astype(np.float64)
    return ImageSums(table[:, :-1], table[:, -1])


def entries(task: DenseTask, split: str, rows: Mapping[str, Counts]) -> list[ScoreEntry]:
    """Scores of each row with intervals, and how much the first row differs from the others."""
    (first, own), *others = rows.items()
    compared: list[tuple[str, Counts, Counts | None]] = [
        *((row, counts, None) for row, counts in rows.items()),
        *((f"{first} - {row}", own, counts) for row, counts in others),
    ]
    found = []
    for metric, function in METRICS[task].items():
        for row, counts, other in compared:
            interval = bootstrap(function, counts, other)
            found.append(
                ScoreEntry(
                    task=TASK_NAMES[task],
                    split=split,
                    row=row,
                    metric=metric,
                    value=round(interval.value, 3),
                    low=round(interval.low, 3),
                    high=round(interval.high, 3),
                    count=len(counts),
                )
            )
    return found
