"""Measures every graph of a package on every runtime and precision that this machine can run."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final, get_args

from transformers import Tipsv2Model

from model.graphs import DENSE_TASKS, DenseTask, Part, Precision, graph_file
from model.manifest import Manifest, ParityEntry
from model.package import ModelPackage
from model.parity.gate import GraphRun, describe, measure, require
from model.parity.reference import DenseReference, build_reference
from model.runtime.base import MissingRuntimeError
from model.runtime.choice import RuntimeChoice
from model.runtime.libraries import RuntimeName
from model.runtime.load import load_chosen

Progress = Callable[[str], None]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)


@dataclass(frozen=True, slots=True)
class Way:
    """A runtime and a precision, and what it computes of a package.

    Attributes:
        is_hint: Whether the runtime itself computes graphs of float32 in this precision. What such
            a way gets wrong is written down, not refused: nobody has to take it.
    """

    runtime: RuntimeName
    precision: Precision
    graphs: tuple[GraphRun, ...]
    is_hint: bool = False


def prove_package(
    model: Tipsv2Model,
    package: ModelPackage,
    *,
    dense: Mapping[DenseTask, DenseReference] | None = None,
    progress: Progress = lambda _: None,
) -> list[ParityEntry]:
    """Compare a package's graphs with its model, in every way that this machine can run them.

    Args:
        model: In float32 and evaluation mode.
        package: Its files; parity entries that it has already are not looked at.
        dense: The heads that the package has, in torch.
        progress: Called with what is being done.

    Returns:
        An entry for each graph in each way; those of hints may not pass.

    Raises:
        ParityError: A graph does not keep its limits.
    """
    progress("running the model in torch, to compare with")
    reference = build_reference(model, package, dense=dense)
    entries: list[ParityEntry] = []
    for way in ways(package.manifest):
        progress(f"comparing {way.runtime} in {way.precision}")
        choice = RuntimeChoice(
            runtime=way.runtime, precision=way.precision, device="cpu", reason="to be compared"
        )
        try:
            runtime = load_chosen(package, choice, num_threads=len(os.sched_getaffinity(0)))
        except MissingRuntimeError as error:
            progress(f"not compared: {error}")
            continue
        with closing(runtime):
            # Not every runtime has every head.
            can_run = {"vision", "text", *(dense or {})} & {"vision", "text", *runtime.tasks}
            graphs = [graph for graph in way.graphs if graph.part in can_run]
            measured = measure(reference, runtime, graphs)
        if not way.is_hint:
            require(measured)
        for entry in measured:
            if not entry.passed:
                progress(f"not to be used: {describe(entry)}")
        entries += measured
    return entries


def ways(manifest: Manifest) -> Iterator[Way]:
    """Every way to run what the package holds, float32 first; each graph of a runtime once."""
    for runtime in ("onnx", "openvino"):
        seen: set[GraphRun] = set()
        for precision in PRECISIONS:
            graphs = tuple(run for run in _graphs(manifest, precision) if run not in seen)
            if graphs and graphs[0].part == "vision":
                seen.update(graphs)
                yield Way(runtime, precision, graphs)


def _graphs(manifest: Manifest, precision: Precision) -> Iterator[GraphRun]:
    """What a choice of this precision loads: its own graphs, float32 for parts without one."""
    parts: tuple[Part, ...] = ("vision", "text", *DENSE_TASKS)
    for part in parts:
        for candidate in (precision, PRECISIONS[0]):
            file = graph_file(part, candidate)
            if file in manifest.files:
                yield GraphRun(part, file, candidate)
                break
