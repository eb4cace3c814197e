"""Heads fitted to labelled images, their scores, and the package with them."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from model.export.added_heads import DESCRIPTION, AddedHeads, add_heads
from model.export.exact import round_weights
from model.graphs import DenseTask
from model.manifest import ScoreEntry
from model.package import ModelPackage
from training.dense.encoder import FrozenEncoder
from training.dense.head import EmbeddingHead, Examples, HeadKind, fit_dense_head
from training.dense.labelled import LabelledData
from training.dense.score import (
    HEAD,
    MEAN,
    Counts,
    RawMap,
    counts_of,
    entries,
    measure,
    raw_map,
)
from training.run_record import code_version

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
