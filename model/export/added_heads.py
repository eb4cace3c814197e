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

from model.export.dense import trace_head
from model.export.exact import store_exactly
from model.export.package_writer import author_text, render_card, staged
from model.export.tracing import save_graph
from model.graphs import DENSE_TASKS, DenseTask, graph_file
from model.manifest import CARD, MANIFEST_NAME, Manifest, ScoreEntry
from model.package import ModelPackage, Progress, open_package, write_manifest
from model.parity.gate import prove_heads

# The heads' part of the card; what follows it is replaced with them.
HEADING: Final = "## Depth and normals"
PROVENANCE: Final = "dense_heads"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AddedHeads:
    """Heads and what a package says of them.

    Attributes:
        modules: By task, in float32: `tap_cls` [B, 1, D] and `tap_patches` [B, 1, h, w, D] to
            metres [B, H', W'], vectors [B, 3, H', W'] or logits. Weights that `round_weights` has
            rounded are stored in half of the bytes.
        card: Markdown that begins with `HEADING`.
        scores: Their scores; they replace those of the same tasks.
        provenance: What they were fitted to.
    """

    modules: Mapping[DenseTask, nn.Module]
    card: str
    scores: Sequence[ScoreEntry]
    provenance: Mapping[str, JsonValue]


def add_heads(
    package: ModelPackage, heads: AddedHeads, output: Path, *, progress: Progress = lambda _: None
) -> ModelPackage:
    """Write a package with these heads; all other graphs are copied byte for byte.

    Args:
        package: Without dense heads, or with such as this function has added.
        heads: The new heads.
        output: The new package's folder; absent, empty, or an older package.
        progress: Called with each step.

    Raises:
        ValueError: The package has dense heads of its own, the card lacks its heading, or `output`
            is no package and not empty.
        ParityError: A graph differs from its module; nothing is written.
    """
    manifest = package.manifest
    if manifest.taps != "embeddings" and not set(DENSE_TASKS).isdisjoint(manifest.outputs):
        raise ValueError(f"{manifest.name} has dense heads of its own, which are not replaced")
    if not heads.card.startswith(f"{HEADING}\n"):
        raise ValueError(f"the text for the card begins with the line {HEADING!r}")
    with staged(output) as staging:
        shutil.copytree(package.path, staging, dirs_exist_ok=True)
        (staging / MANIFEST_NAME).unlink()
        for task in DENSE_TASKS:
            (staging / graph_file(task)).unlink(missing_ok=True)
        for task, module in heads.modules.items():
            progress(f"exporting the {task} graph")
            graph = trace_head(module, task, num_taps=1, width=manifest.embed_dim)
            store_exactly(graph)
            save_graph(graph, staging / graph_file(task))
        draft = _with_heads(manifest, heads)
        proven = prove_heads(write_manifest(staging, draft), heads.modules, progress)
        draft = draft.model_copy(update={"parity": [*draft.parity, *proven]})
        before = author_text((package.path / CARD).read_text(encoding="utf-8"))
        text = f"{before.partition(HEADING)[0].strip()}\n\n{heads.card}"
        (staging / CARD).write_text(render_card(text, draft), encoding="utf-8")
        write_manifest(staging, draft)
    return open_package(output)


def _with_heads(manifest: Manifest, heads: AddedHeads) -> Manifest:
    others = [name for name in manifest.outputs if name not in DENSE_TASKS]
    files = {graph_file(task) for task in DENSE_TASKS}
    tasks = {score.task for score in heads.scores}
    added = {
        "outputs": [*others, *heads.modules],
        "num_taps": 1,
        "taps": "embeddings",
        "parity": [entry for entry in manifest.parity if entry.file not in files],
        "scores": [*(s for s in manifest.scores if s.task not in tasks), *heads.scores],
        "provenance": {**manifest.provenance, PROVENANCE: dict(heads.provenance)},
    }
    return Manifest.model_validate(manifest.model_copy(update=added).model_dump())
