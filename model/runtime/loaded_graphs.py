"""Which of a package's graphs a choice of runtime loads, and in which arithmetic each computes."""

from dataclasses import dataclass

from model.graphs import DENSE_TASKS, Part, Precision, graph_file
from model.manifest import Manifest, ParityEntry
from model.runtime.machine import RuntimeName

TORCH_FILE = "model.safetensors"
# OpenVINO computes a graph of float32 in this one where it is told to; others need their own graph.
HINTED: frozenset[Precision] = frozenset({"fp32", "bf16"})


@dataclass(frozen=True, slots=True)
class LoadedGraph:
    """A file of the package, and the arithmetic that computes it."""

    part: Part
    file: str
    precision: Precision


def vision_file(runtime: RuntimeName, precision: Precision) -> str:
    """The file without which a runtime computes no image in this precision."""
    return _file("vision", runtime, precision)


def loaded_graphs(
    manifest: Manifest, runtime: RuntimeName, precision: Precision
) -> tuple[LoadedGraph, ...]:
    """What is loaded: both towers, and the dense heads that the package has.

    Texts and heads are computed in float32 where the package has no such graph in the precision
    that was chosen. Depth always is: its bins lose their order in less. So are texts where OpenVINO
    computes in bf16: they are embedded once and kept, and rounded on both sides, images and
    texts, more masks would differ than a proof allows.
    """
    parts: list[Part] = ["vision", "text"]
    if runtime != "torch":
        parts += [task for task in DENSE_TASKS if graph_file(task) in manifest.files]
    exact: set[Part] = {"depth"}
    if runtime == "openvino" and precision == "bf16":
        exact.add("text")
    loaded = []
    for part in parts:
        arithmetic: Precision = "fp32" if part in exact else precision
        file = _file(part, runtime, arithmetic)
        if part != "vision" and file not in manifest.files:
            file, arithmetic = graph_file(part), "fp32"
        loaded.append(LoadedGraph(part, file, arithmetic))
    return tuple(loaded)


def _file(part: Part, runtime: RuntimeName, precision: Precision) -> str:
    if runtime == "torch":
        return TORCH_FILE
    if runtime == "openvino" and precision in HINTED:
        return graph_file(part)
    return graph_file(part, precision)


def loaded_bytes(manifest: Manifest, runtime: RuntimeName, precision: Precision) -> int:
    """Bytes of the files that are loaded, with the weights that lie beside large graphs."""
    graphs = {graph.file for graph in loaded_graphs(manifest, runtime, precision)}
    return sum(
        entry.size_bytes
        for name, entry in manifest.files.items()
        if any(name.startswith(graph) for graph in graphs)
    )


def parity_in_use(
    manifest: Manifest, runtime: RuntimeName, precision: Precision
) -> tuple[ParityEntry, ...]:
    """What the package says of the graphs that are loaded, as this runtime computes them."""
    used = {(g.file, g.precision) for g in loaded_graphs(manifest, runtime, precision)}
    return tuple(
        entry
        for entry in manifest.parity
        if entry.runtime == runtime and (entry.file, entry.precision) in used
    )


def proof(manifest: Manifest, runtime: RuntimeName, precision: Precision) -> ParityEntry | None:
    """The entry that proves the vision graph, where no other graph that is loaded failed."""
    entries = parity_in_use(manifest, runtime, precision)
    wanted = vision_file(runtime, precision), precision
    found = [entry for entry in entries if (entry.file, entry.precision) == wanted]
    return found[0] if found and all(entry.passed for entry in entries) else None
