"""Scores of dense heads on rendered rooms, for the model card; defined as in `tipserve evaluate`.

Shapes: R resamples, S images, P examples, m rows and columns of a map, H W pixels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from model.dense_maps import MapTask, make_map
from model.manifest import ScoreEntry
from model.scores.bootstrap import bootstrap
from model.scores.maps import angles, depth_scores
from training.data.renders.rooms import Render
from training.dense.encoder import Embeddings
from training.dense.head import EmbeddingHead

TASK_NAMES: Final[Mapping[MapTask, str]] = {"depth": "depth", "normals": "surface normals"}
HEAD, MEAN, RANDOM = "head", "training mean", "same head on shuffled weights"

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

    def column(self, index: int) -> "ImageSums":
        """One metric."""
        return ImageSums(self.sum_SK[:, index : index + 1], self.count_S)

    def mean(self, weights_RS: Floats) -> Floats:
        """Means of the first metric under each row of weights."""
        mean_R: Floats = (weights_RS @ self.sum_SK[:, 0]) / (weights_RS @ self.count_S)
        return mean_R


# Metrics by task: name, and the factor of the printed number.
METRICS: Final[Mapping[MapTask, tuple[tuple[str, float], ...]]] = {
    "depth": (("RMSE (m)", 1), ("AbsRel (%)", 100), ("delta1 (%)", 100)),
    "normals": (("mean angle (degrees)", 1), ("under 30 degrees (%)", 100)),
}


def raw_maps(head: EmbeddingHead, embeddings: Embeddings) -> Iterable[RawMap]:
    """The head's output for each image."""
    with torch.inference_mode():
        for cls_D, patches_hwD in zip(embeddings.cls_PD, embeddings.patches_PhwD, strict=True):
            taps = (torch.from_numpy(part.astype(np.float32)) for part in (cls_D, patches_hwD))
            cls, patches = taps
            yield head(cls[None, None], patches[None, None])[0].numpy()


def compare(task: MapTask, maps: Iterable[RawMap], truth: Iterable[Render]) -> ImageSums:
    """Compare maps, scaled as the service does, with what is true of each pixel."""
    rows, counts = [], []
    for raw, render in zip(maps, truth, strict=True):
        found = make_map(task, raw, render.depth_SS.shape).astype(np.float64)
        if task == "depth":
            *sums, count = depth_scores(found.ravel(), render.depth_SS.astype(np.float64).ravel())
        else:
            normals_P3 = render.normals_SS3.astype(np.float64).reshape(-1, 3)
            angle_P = angles(found.reshape(-1, 3), normals_P3)
            sums, count = [float(angle_P.sum()), float((angle_P < 30).sum())], len(angle_P)
        rows.append(sums)
        counts.append(count)
    return ImageSums(np.asarray(rows, np.float64), np.asarray(counts, np.float64))


def entries(task: MapTask, split: str, rows: Mapping[str, ImageSums]) -> list[ScoreEntry]:
    """Scores of each row with intervals, and how much the first row differs from the others."""
    (first, own), *others = rows.items()
    compared: list[tuple[str, ImageSums, ImageSums | None]] = [
        *((row, sums, None) for row, sums in rows.items()),
        *((f"{first} - {row}", own, sums) for row, sums in others),
    ]
    found = []
    for index, (metric, factor) in enumerate(METRICS[task]):
        for row, sums, other in compared:
            others_column = None if other is None else other.column(index)
            interval = bootstrap(ImageSums.mean, sums.column(index), others_column)
            found.append(
                ScoreEntry(
                    task=TASK_NAMES[task],
                    split=split,
                    row=row,
                    metric=metric,
                    value=round(factor * interval.value, 3),
                    low=round(factor * interval.low, 3),
                    high=round(factor * interval.high, 3),
                    count=len(sums),
                )
            )
    return found
