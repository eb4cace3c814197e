"""Measures every graph of a package on every runtime and precision that this machine can run."""

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from transformers import Tipsv2Model

from model.graphs import DenseTask, graph_file
from model.manifest import Manifest, ParityEntry
from model.package import ModelPackage
from model.parity.distance import ParityError
from model.parity.gate import describe, measure, require
from model.parity.reference import DenseReference, build_reference
from model.runtime.choice import RuntimeChoice
from model.runtime.hardware import this_hardware
from model.runtime.libraries import installed_libraries
from model.runtime.load import load_chosen
from model.runtime.loaded_graphs import LoadedGraph, loaded_graphs
from model.runtime.ways import WAYS, Machine, find_obstacle

Progress = Callable[[str], None]
# In this order: what is wrong with a graph itself shows first where nothing is rounded. torch is
# what these are compared with, and GPUs are not where packages are written.
RUNTIMES: Final = ("onnx", "openvino")


@dataclass(frozen=True, slots=True)
class Proof:
    """A runtime and a precision, and what it computes of a package."""

    choice: RuntimeChoice
    graphs: tuple[LoadedGraph, ...]

    @property
    def is_hint(self) -> bool:
        """Whether the runtime itself computes graphs of float32 in another precision.

        What such a way gets wrong is written down, not refused: nobody has to take it.
        """
        return self.choice.precision != "fp32" and all(
            graph.file == graph_file(graph.part) for graph in self.graphs
        )


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
        dense: The heads that the package has, in torch; those that are not here are not measured.
        progress: Called with what is being done.

    Returns:
        An entry for each graph in each way; those of hints may not pass.

    Raises:
        ParityError: A graph does not keep its limits, or nothing here can run any.
    """
    proofs = plan_proofs(package.manifest, Machine(this_hardware(), installed_libraries()))
    if not proofs:
        raise ParityError(
            "no runtime is installed that could run the graphs, so nothing shows that they compute "
            "what the model does: pip install 'tipserve[cpu]'"
        )
    progress("running the model in torch, to compare with")
    reference = build_reference(model, package, dense=dense)
    num_threads = len(os.sched_getaffinity(0))
    entries: list[ParityEntry] = []
    for proof in proofs:
        choice = proof.choice
        progress(f"comparing {choice.runtime} in {choice.precision}")
        with closing(load_chosen(package, choice, num_threads=num_threads)) as runtime:
            heads = set(dense or {}) & set(runtime.tasks)
            graphs = [graph for graph in proof.graphs if graph.part in {"vision", "text", *heads}]
            measured = measure(reference, runtime, graphs)
        if not proof.is_hint:
            require(measured)
        for entry in measured:
            if not entry.passed:
                progress(f"not to be used: {describe(entry)}")
        entries += measured
    return entries


def plan_proofs(manifest: Manifest, machine: Machine) -> list[Proof]:
    """Every way to run on a CPU what the package holds, float32 first; each graph of a way once."""
    proofs = []
    ways = [way for name in RUNTIMES for way in WAYS if (way.runtime, way.device) == (name, "cpu")]
    for way in ways:
        seen: set[LoadedGraph] = set()
        for precision in sorted(way.precisions, key=lambda name: name != "fp32"):
            if find_obstacle(way, precision, manifest, machine) is not None:
                continue
            loaded = loaded_graphs(manifest, way.runtime, precision)
            choice = RuntimeChoice(
                runtime=way.runtime,
                precision=precision,
                device=way.device,
                provider=way.provider,
                reason="to be compared with the model",
            )
            proofs.append(Proof(choice, tuple(graph for graph in loaded if graph not in seen)))
            seen.update(loaded)
    return proofs
