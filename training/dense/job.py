"""Heads fitted to labelled images, their scores, and the package with them."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseHeadsJob:
    """Settings of a run.

    Attributes:
        package: The encoder; its graphs are copied.
        sources: What to train on; no two have a task in common.
        folder: Of files that are needed again after a stop.
        kind: Linear heads, or with DPT's decoder.
        num_steps: Of each fit.
    """

    package: ModelPackage
    sources: Sequence[LabelledData]
    folder: Path
    kind: HeadKind
    num_steps: int

    def run(self, output: Path) -> ModelPackage:
        """Fit and score a head for each task of the sources; write the package with them.

        Raises:
            ValueError: The package has dense heads of its own, a set is invalid, or `output` is no
                package.
        """
        # Threads that wait for each other take most of the time on a busy machine.
        torch.set_num_threads(1)
        self.folder.mkdir(parents=True, exist_ok=True)
        encoder = FrozenEncoder.load(self.package)
        heads: dict[DenseTask, EmbeddingHead] = {}
        scores: list[ScoreEntry] = []
        with closing(encoder.runtime):
            for source in self.sources:
                heads[source.task], rows = self._fit(encoder, source)
                scores += entries(source.task, source.test.name, rows)
        added = AddedHeads(
            modules=heads,
            labels=tuple(label for source in self.sources for label in source.labels),
            scores=scores,
            provenance={source.task: self._record(source) for source in self.sources},
        )
        for entry in scores:
            _say(f"{entry.task}: {entry.row}, {entry.metric} {entry.value:g}")
        return add_heads(self.package, added, output, progress=_say)

    def _fit(
        self, encoder: FrozenEncoder, source: LabelledData
    ) -> tuple[EmbeddingHead, dict[str, Counts]]:
        """A head; and the counts of it, and of the training set's mean map."""
        task, examples = source.task, source.examples(encoder)
        _say(f"fitting {task} to {len(examples.cls_PD)} images")
        head = fit_dense_head(examples, task, self.kind, num_steps=self.num_steps)
        round_weights(head, "fp16")  # what is scored is what the graph stores
        mean = mean_map(task, examples)
        rows: dict[str, list[NDArray[Any]]] = {HEAD: [], MEAN: []}
        for seen, truth in source.tests(encoder):
            rows[HEAD].append(measure(task, raw_map(head, seen), truth))
            rows[MEAN].append(measure(task, mean, truth))
        return head, {row: counts_of(task, found) for row, found in rows.items()}

    def _record(self, source: LabelledData) -> dict[str, JsonValue]:
        record = source.record()
        kind = KIND_TEXTS[self.kind]
        return {
            DESCRIPTION: f"{record['output']}; {kind}, fitted to {record['data']}.",
            "job": "dense-heads",
            "commit": code_version()["commit"] or "unknown",
            "kind": self.kind,
            "steps": self.num_steps,
            **{name: value for name, value in record.items() if name != "output"},
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
