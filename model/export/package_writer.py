"""Write a model package: weights, graphs, processor and card."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from torch import nn

from model.card import render_card
from model.encoder import WEIGHTS_FILE
from model.export.graph_writer import PackageContent, write_graphs
from model.graphs import Part, Precision, graph_file
from model.manifest import CARD, ParityEntry
from model.package import ModelPackage, Progress, open_package, staged, write_manifest
from model.parity.gate import prove_package, run_reference
from model.parity.recorded import write_recorded
from model.parity.reference import dense_reference, recorded_reference
from model.runtime.machine import trim


def write_package(
    content: PackageContent,
    output: Path,
    *,
    is_thorough: bool = False,
    progress: Progress = lambda _: None,
) -> ModelPackage:
    """Write the complete package, which appears when all graphs have passed the parity gate.

    Args:
        content: Encoder and settings. The weights are freed before the comparison, which takes as
            much memory: the models cannot be used again.
        output: The package's folder; absent, empty, or an older package, which is replaced.
        is_thorough: See `run_reference`.
        progress: Called with each step.

    Raises:
        ValueError: `output` is not a package and not empty.
        ParityError: A graph differs from the model; nothing is written.
    """
    with staged(output) as staging:
        progress("writing weights and tokenizer")
        content.encoder.save(staging)
        if content.is_graphs_only:
            (staging / WEIGHTS_FILE).unlink()
        write_graphs(content, staging, progress)
        # The gate loads the graphs as the server does, which needs a manifest.
        first = write_manifest(staging, content.draft)
        dense = dense_reference(content.dense)
        progress("recording what the model computes, for servers to compare with")
        recorded = recorded_reference(content.encoder, first, dense=dense, progress=progress)
        write_recorded(*recorded, staging)
        reference = run_reference(
            content.encoder, first, dense=dense, is_thorough=is_thorough, progress=progress
        )
        _free_weights(content)
        parity = prove_package(first, reference, may_fail=content.may_fail, progress=progress)
        parity = _without_failed(staging, parity, content.may_fail, progress)
        manifest = content.draft.model_copy(update={"parity": parity})
        (staging / CARD).write_text(render_card(content.card, manifest), encoding="utf-8")
        write_manifest(staging, manifest)
    return open_package(output)


def _without_failed(
    folder: Path, parity: Sequence[ParityEntry], may_fail: Sequence[Precision], progress: Progress
) -> list[ParityEntry]:
    """Remove failed towers, and what is not used without them; returns the remaining entries."""
    failed, removed = {entry.file for entry in parity if not entry.passed}, set()
    for precision in may_fail:
        every = {graph_file(part, precision) for part in get_args(Part)}
        removed |= {graph_file("text", precision)} & failed
        removed |= every if graph_file("vision", precision) in failed else set()
    for file in sorted(removed):
        progress(f"{file} is left out")
    for file in removed:
        for path in (folder / file, folder / f"{file}.data"):
            path.unlink(missing_ok=True)
    return [entry for entry in parity if entry.file not in removed]


def _free_weights(content: PackageContent) -> None:
    """Free the memory of all weights, although callers hold the modules."""
    for module in (content.encoder.vision, content.encoder.text, content.dense or nn.Module()):
        for weight in (*module.parameters(), *module.buffers()):
            weight.data = weight.data.new_empty(0)
    gc.collect()  # views of weights are in cycles of the exporter
    trim()
