"""Compare graphs with the model, and refuse a package whose graphs differ."""

import os
from collections.abc import Collection, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

from torch import nn

from model.card import render_card
from model.encoder import Encoder
from model.graphs import DenseTask, Part, Precision, graph_file
from model.installation import install
from model.manifest import CARD, Manifest, ParityEntry
from model.package import ModelPackage, Progress, write_manifest
from model.parity.inputs import TEXTS, image_inputs
from model.parity.measure import ParityError, Reference, describe, measure
from model.parity.reference import DenseReference, head_reference, run_model
from model.runtime.base import LaneShare, Runtime
from model.runtime.choice import BACKENDS, Machine, RuntimeChoice, unavailable_reason
from model.runtime.graph_runtime import GraphRuntime
from model.runtime.load import load_chosen
from model.runtime.loaded_graphs import TOWERS, LoadedGraph, loaded_graphs
from model.runtime.machine import RuntimeName, installed_libraries, this_hardware, trim
from model.text import TextTokenizer

# ONNX Runtime first: it rounds nothing, so its differences are faults of the graph itself. torch is
# the reference, and packages are not written on GPUs.
RUNTIMES: Final[tuple[RuntimeName, ...]] = ("onnx", "openvino")


@dataclass(frozen=True, slots=True)
class Proof:
    """A backend, a precision, and the graphs to compare."""

    choice: RuntimeChoice
    graphs: tuple[LoadedGraph, ...]

    @property
    def is_hint(self) -> bool:
        """Whether the runtime computes float32 graphs in another precision.

        Failures are then only recorded: such a backend is not chosen by default.
        """
        return self.choice.precision != "fp32" and all(
            graph.file == graph_file(graph.part) for graph in self.graphs
        )


def run_reference(
    encoder: Encoder,
    package: ModelPackage,
    *,
    dense: DenseReference | None = None,
    is_thorough: bool = False,
    progress: Progress = lambda _: None,
) -> Reference:
    """Run the model on all inputs that `prove_package` compares on; it may be freed then.

    Args:
        encoder: In float32 and evaluation mode.
        package: Its package.
        dense: The package's heads in torch; without them no head is measured.
        is_thorough: Measure on all sizes; see `image_inputs`.
        progress: Called with each step.

    Raises:
        ParityError: No runtime is installed.
    """
    _planned(package)
    tokenizer = TextTokenizer.from_package(package)
    return run_model(
        encoder,
        package,
        images=image_inputs(package.manifest, is_thorough=is_thorough),
        texts=[tokenizer.encode(texts) for texts in TEXTS],
        dense=dense,
        progress=progress,
    )


def prove_package(
    package: ModelPackage,
    reference: Reference,
    *,
    may_fail: Collection[Precision] = (),
    progress: Progress = lambda _: None,
) -> list[ParityEntry]:
    """Compare a package's graphs with its model, on every CPU backend of this machine.

    Args:
        package: Has the graphs; its earlier parity entries are ignored.
        reference: From `run_reference`.
        may_fail: Precisions whose failures are only recorded.
        progress: Called with each step.

    Returns:
        An entry for each graph and backend. Entries of hinted precisions may have failed, and
        entries of dense heads in less than float32, which are then served in float32.

    Raises:
        ParityError: A graph exceeds its limits, or no runtime is installed.
    """
    parts = TOWERS | reference.tasks
    return _prove(*_planned(package), reference, parts, may_fail=may_fail, progress=progress)


def prove_heads(
    package: ModelPackage, heads: Mapping[DenseTask, nn.Module], progress: Progress = lambda _: None
) -> list[ParityEntry]:
    """Compare the graphs of heads that read embeddings with torch, on every CPU backend.

    Towers are not compared: torch reads the embeddings of the package's first runtime.

    Raises:
        ParityError: A graph exceeds its limits, or no runtime is installed.
    """
    package, proofs = _planned(package)
    progress("running the heads in torch, as the reference")
    with _loaded(package, proofs[0]) as runtime:
        reference = head_reference(package, runtime, heads)
    return _prove(package, proofs, reference, reference.tasks, progress=progress)


def _planned(package: ModelPackage) -> tuple[ModelPackage, list[Proof]]:
    """The package without earlier entries, and what to compare."""
    unproven = package.manifest.model_copy(update={"parity": []})
    proofs = plan_proofs(unproven, Machine(this_hardware(), installed_libraries()))
    if not proofs:
        raise ParityError(
            "no runtime is installed that can run the graphs, so they cannot be compared with the "
            f"model: {install('cpu')}"
        )
    return replace(package, manifest=unproven), proofs


def _loaded(package: ModelPackage, proof: Proof) -> closing[Runtime]:
    """A runtime that loads each graph on its first use."""
    share = LaneShare(num_threads=len(os.sched_getaffinity(0)), is_lazy=True)
    return closing(load_chosen(package, proof.choice, share))


def _prove(
    package: ModelPackage,
    proofs: Sequence[Proof],
    reference: Reference,
    parts: Set[Part],
    *,
    progress: Progress,
    may_fail: Collection[Precision] = (),
) -> list[ParityEntry]:
    entries: list[ParityEntry] = []
    for proof in proofs:
        precision = proof.choice.precision
        progress(f"comparing {proof.choice.runtime} in {precision}")
        graphs = [graph for graph in proof.graphs if graph.part in parts]
        found: dict[LoadedGraph, ParityEntry] = {}
        with _loaded(package, proof) as runtime:
            # Only the vision graph stays in memory, since heads read it; so text comes first.
            for graph in sorted(graphs, key=lambda graph: graph.part != "text"):
                found[graph] = measure(reference, runtime, graph, progress=progress)
                if isinstance(runtime, GraphRuntime) and graph.part != "vision":
                    runtime.free(graph.part)
                    trim()
        trim()
        if not proof.is_hint and precision not in may_fail:
            require([found[g] for g in graphs if g.part in TOWERS or g.precision == "fp32"])
        entries += [found[graph] for graph in graphs]
        for entry in found.values():
            if not entry.passed:
                progress(f"not to be used: {describe(entry)}")
    return entries


def plan_proofs(manifest: Manifest, machine: Machine) -> list[Proof]:
    """List what to compare: every CPU backend, float32 first, each of its graphs once."""
    proofs = []
    on_cpu = {backend.runtime: backend for backend in BACKENDS if backend.device == "cpu"}
    for runtime in RUNTIMES:
        seen: set[LoadedGraph] = set()
        for precision in sorted(on_cpu[runtime].precisions, key=lambda name: name != "fp32"):
            if unavailable_reason(on_cpu[runtime], precision, manifest, machine) is not None:
                continue
            loaded = loaded_graphs(manifest, runtime, precision)
            choice = RuntimeChoice(runtime=runtime, precision=precision, device="cpu", reason="")
            proofs.append(Proof(choice, tuple(graph for graph in loaded if graph not in seen)))
            seen.update(loaded)
    return proofs


def require(entries: Sequence[ParityEntry]) -> None:
    """ParityError unless all graphs are within their limits."""
    for entry in entries:
        if not entry.passed:
            raise ParityError(
                f"{describe(entry)}. Nothing was written: leave this precision out, or fix the "
                "export; look for weights that overflow, and for layers that quantisation harms"
            )


def write_parity(package: ModelPackage, entries: Sequence[ParityEntry]) -> ModelPackage:
    """Replace the entries of the same graphs and backends in a package's manifest and card."""
    measured = {(entry.file, entry.runtime, entry.precision) for entry in entries}
    kept = [
        entry
        for entry in package.manifest.parity
        if (entry.file, entry.runtime, entry.precision) not in measured
    ]
    manifest = package.manifest.model_copy(update={"parity": [*entries, *kept]})
    card = package.path / CARD
    before = card.read_text(encoding="utf-8")
    try:
        card.write_text(render_card(before, manifest), encoding="utf-8")
        return write_manifest(package.path, manifest)
    except BaseException:
        # The old manifest, which is still in place, has the digest of the old card.
        card.write_text(before, encoding="utf-8")
        raise
