"""Add dense heads that read embeddings to a finished package, whose graphs stay as they are.

Shapes: B batch, D embedding width, h w patch rows and columns, H' W' eight times as many.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import JsonValue
from torch import nn

from model.card import author_text, render_card
from model.export.dense import trace_head
from model.export.exact import store_exactly
from model.export.tracing import save_graph
from model.graphs import DENSE_TASKS, DenseTask, graph_file
from model.manifest import CARD, MANIFEST_NAME, Manifest, ScoreEntry
from model.package import ModelPackage, Progress, open_package, staged, write_manifest
from model.parity.gate import prove_heads

# The heads' part of the card; what follows it is replaced with them.
HEADING: Final = "## Dense heads"
HEADING_TEXT: Final = (
    "Trained on the frozen patches by `python -m training dense-heads`, and stored beside the "
    "encoder, whose graphs stay as they were."
)
PROVENANCE: Final = "dense_heads"
# Of a head's provenance, for the card.
DESCRIPTION: Final = "description"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AddedHeads:
    """Heads and what a package says of them.

    Attributes:
        modules: By task, in float32: `TAPS` to metres [B, H', W'], vectors [B, 3, H', W'] or logits
            [B, K, H', W']. Weights that `round_weights` has rounded are stored in half of the
            bytes.
        scores: Their scores; they replace those of the same tasks.
        provenance: What each was fitted to; `DESCRIPTION` is a sentence for the card.
        labels: Names of the K classes, if segmentation is among them.
    """

    modules: Mapping[DenseTask, nn.Module]
    scores: Sequence[ScoreEntry]
    provenance: Mapping[DenseTask, dict[str, JsonValue]]
    labels: Sequence[str] = ()


def add_heads(
    package: ModelPackage, heads: AddedHeads, output: Path, *, progress: Progress = lambda _: None
) -> ModelPackage:
    """Write a package with these heads; all other graphs are copied byte for byte.

    Heads for other tasks that this function has added before stay.

    Raises:
        ValueError: The package has dense heads of its own, or `output` is no package and not empty.
        ParityError: A graph differs from its module; nothing is written.
    """
    manifest = package.manifest
    if manifest.taps != "embeddings" and not set(DENSE_TASKS).isdisjoint(manifest.outputs):
        raise ValueError(f"{manifest.name} has dense heads of its own, which are not replaced")
    with staged(output) as staging:
        shutil.copytree(package.path, staging, dirs_exist_ok=True)
        (staging / MANIFEST_NAME).unlink()
        for task, module in heads.modules.items():
            progress(f"exporting the {task} graph")
            graph = trace_head(module, task, num_taps=1, width=manifest.embed_dim)
            store_exactly(graph)
            (staging / graph_file(task)).unlink(missing_ok=True)
            save_graph(graph, staging / graph_file(task))
        draft = _with_heads(manifest, heads)
        proven = prove_heads(write_manifest(staging, draft), heads.modules, progress)
        draft = draft.model_copy(update={"parity": [*draft.parity, *proven]})
        before = author_text((package.path / CARD).read_text(encoding="utf-8"))
        text = f"{before.partition(HEADING)[0].strip()}\n\n{_section(draft)}"
        (staging / CARD).write_text(render_card(text, draft), encoding="utf-8")
        write_manifest(staging, draft)
    return open_package(output)


def _with_heads(manifest: Manifest, heads: AddedHeads) -> Manifest:
    files = {graph_file(task) for task in heads.modules}
    tasks = {score.task for score in heads.scores}
    earlier = manifest.provenance.get(PROVENANCE) or {}
    assert isinstance(earlier, dict)
    fitted = dict(earlier)
    for task, record in heads.provenance.items():
        fitted[task] = record
    others = [name for name in manifest.outputs if name not in DENSE_TASKS]
    dense = [task for task in DENSE_TASKS if task in heads.modules or task in manifest.outputs]
    added = {
        "outputs": [*others, *dense],
        "segmentation_labels": list(heads.labels or manifest.segmentation_labels),
        "num_taps": 1,
        "taps": "embeddings",
        "parity": [entry for entry in manifest.parity if entry.file not in files],
        "scores": [*(s for s in manifest.scores if s.task not in tasks), *heads.scores],
        "provenance": {**manifest.provenance, PROVENANCE: fitted},
    }
    return Manifest.model_validate(manifest.model_copy(update=added).model_dump())


def _section(manifest: Manifest) -> str:
    """The heads' part of the card."""
    fitted = manifest.provenance[PROVENANCE]
    assert isinstance(fitted, dict)
    lines = [
        f"- **{task}**: {record[DESCRIPTION]}"
        for task in DENSE_TASKS
        if isinstance(record := fitted.get(task), dict)
    ]
    return "\n".join([HEADING, "", HEADING_TEXT, "", *lines])
