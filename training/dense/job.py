"""Heads fitted to labelled images, their scores as in `tipserve evaluate`, and the package.

Shapes: R resamples, S images, K metrics or classes, h w and H W rows and columns of a head's output
and of an image.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from model.dense_maps import make_map
from model.export.added_heads import DESCRIPTION, AddedHeads, add_heads
from model.export.exact import round_weights
from model.graphs import DenseTask
from model.labelled.sets import DEPTH, NORMALS, OWN_SEGMENTATION
from model.manifest import ScoreEntry
from model.package import ModelPackage
from model.scores.pixels import Pixels, angles, count_pixels, depth_scores
from model.winner_map import find_winners
from training.dense.head import EmbeddingHead, Examples, HeadKind, fit_dense_head
from training.dense.labelled import Embeddings, FrozenEncoder, LabelledData
from training.run_record import code_version
from training.score_entries import score_entries

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
    compared: dict[str, tuple[Counts, ...]] = {row: (counts,) for row, counts in rows.items()}
    compared |= {f"{first} - {row}": (own, counts) for row, counts in others}
    return [*score_entries(TASK_NAMES[task], split, compared, METRICS[task], digits=3)]


KIND_TEXTS: Final[Mapping[HeadKind, str]] = {
    "linear": "a linear head",
    "dpt": "a head with DPT's decoder",
}
_ROWS_AT_ONCE: Final = 64


def add_trained_heads(
    package: ModelPackage,
    sources: Sequence[LabelledData],
    output: Path,
    *,
    kind: HeadKind,
    num_steps: int,
) -> ModelPackage:
    """Fit and score a head for each task of the sources; write the package with them.

    Args:
        package: The encoder; its graphs are copied.
        sources: What to train on; no two have a task in common.
        output: Folder of the new package.
        kind: Linear heads, or with DPT's decoder.
        num_steps: Of each fit.

    Raises:
        ValueError: The package has dense heads of its own, a set is invalid, or `output` is no
            package.
    """
    # Threads that wait for each other take most of the time on a busy machine.
    torch.set_num_threads(1)
    encoder = FrozenEncoder.load(package)
    heads: dict[DenseTask, EmbeddingHead] = {}
    scores: list[ScoreEntry] = []
    with closing(encoder.runtime):
        for source in sources:
            heads[source.task], rows = _fit(encoder, source, kind, num_steps)
            scores += entries(source.task, source.test.name, rows)
    added = AddedHeads(
        modules=heads,
        labels=tuple(label for source in sources for label in source.labels),
        scores=scores,
        provenance={source.task: _record(source, kind, num_steps) for source in sources},
    )
    for entry in scores:
        _say(f"{entry.task}: {entry.row}, {entry.metric} {entry.value:g}")
    return add_heads(package, added, output, progress=_say)


def _fit(
    encoder: FrozenEncoder, source: LabelledData, kind: HeadKind, num_steps: int
) -> tuple[EmbeddingHead, dict[str, Counts]]:
    """A head; and the counts of it, and of the training set's mean map."""
    task, examples = source.task, source.examples(encoder)
    _say(f"fitting {task} to {len(examples.cls_PD)} images")
    head = fit_dense_head(examples, task, kind, num_steps=num_steps)
    round_weights(head, "fp16")  # what is scored is what the graph stores
    mean = mean_map(task, examples)
    rows: dict[str, list[NDArray[Any]]] = {HEAD: [], MEAN: []}
    for seen, truth in source.tests(encoder):
        rows[HEAD].append(measure(task, raw_map(head, seen), truth))
        rows[MEAN].append(measure(task, mean, truth))
    return head, {row: counts_of(task, found) for row, found in rows.items()}


def _record(source: LabelledData, kind: HeadKind, num_steps: int) -> dict[str, JsonValue]:
    record = dict(source.record())
    return {
        DESCRIPTION: f"{record.pop('output')}; {KIND_TEXTS[kind]}, fitted to {record['data']}.",
        "job": "dense-heads",
        "commit": code_version()["commit"] or "unknown",
        "kind": kind,
        "steps": num_steps,
        **record,
    }


def mean_map(task: DenseTask, examples: Examples) -> RawMap:
    """The mean map of all examples: the best answer without a look at the image.

    Of segmentation it is how often each class is at each place [K, m, m]. Where no example has
    a depth it is the mean depth.
    """
    total: Any = 0
    count: Any = 0
    for first in range(0, len(examples.maps), _ROWS_AT_ONCE):
        part = examples.maps[first : first + _ROWS_AT_ONCE]
        if task == "segmentation":
            total += np.stack([(part == k).sum(axis=0) for k in range(examples.num_classes)])
        else:
            total += part.sum(axis=0, dtype=np.float64)
            count += (part > 0).sum(axis=0)
    if task == "depth":
        total = np.where(count > 0, total / np.maximum(count, 1), total.sum() / count.sum())
    mean: RawMap = np.asarray(total, np.float32)
    return mean


def _say(step: str) -> None:
    print(step, flush=True)
