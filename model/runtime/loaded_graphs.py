"""The graphs of a package that a runtime loads, and the arithmetic of each."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import get_args

from model.graphs import DENSE_TASKS, Part, Precision, graph_file
from model.manifest import TORCH_FILE, Manifest, ParityEntry
from model.runtime.machine import RuntimeName

TOWERS: frozenset[Part] = frozenset({"vision", "text"})
# Precisions that OpenVINO computes from the float32 graph; the others need their own graph.
HINTED: frozenset[Precision] = frozenset({"fp32", "bf16"})


@dataclass(frozen=True, slots=True)
class LoadedGraph:
    """A graph file and the precision that it is computed in."""

    part: Part
    file: str
    precision: Precision


def loaded_graphs(
    manifest: Manifest, runtime: RuntimeName, precision: Precision
) -> tuple[LoadedGraph, ...]:
    """List the graphs to load: both towers, and the dense heads among the package's outputs.

    Text and each head fall back to float32 on their own if the package has no graph in the chosen
    precision, or if that graph failed its measurement on this runtime. Depth is always in float32:
    its bins lose their order in less. With OpenVINO in bf16, so is text, which is cached: with both
    sides rounded more masks would differ than the parity gate allows.
    """
    parts: list[Part] = ["vision", "text"]
    if runtime != "torch":
        heads = [task for task in DENSE_TASKS if task in manifest.outputs]
        parts += [task for task in heads if graph_file(task) in manifest.files]
    exact: set[Part] = {"depth"}
    if runtime == "openvino" and precision == "bf16":
        exact.add("text")
    loaded = []
    for part in parts:
        arithmetic: Precision = "fp32" if part in exact else precision
        file = loaded_file(part, runtime, arithmetic)
        if part != "vision" and (
            file not in manifest.files
            or (runtime != "torch" and failures(manifest, runtime, file, arithmetic))
        ):
            file, arithmetic = graph_file(part), "fp32"
        loaded.append(LoadedGraph(part, file, arithmetic))
    return tuple(loaded)


def tapped_graph(
    manifest: Manifest, vision: LoadedGraph, head: LoadedGraph, runtime: RuntimeName
) -> LoadedGraph:
    """The vision graph whose taps a head reads: that of the embeddings if it has its precision.

    A head that reads embeddings also reads those in int8, so that the encoder runs once. The heads
    of the bundled model lose nothing: on 150 rendered rooms the RMSE of depth is 0.897 instead of
    0.892 m, normals are 23.0 instead of 23.1 degrees off.
    """
    is_read_in_int8 = vision.precision == "int8" and manifest.taps == "embeddings"
    if head.precision == vision.precision or is_read_in_int8:
        return vision
    return LoadedGraph("vision", loaded_file("vision", runtime, head.precision), head.precision)


def loaded_file(part: Part, runtime: RuntimeName, precision: Precision) -> str:
    """The file that a runtime loads for a part in this precision."""
    if runtime == "torch":
        return TORCH_FILE
    if runtime == "openvino" and precision in HINTED:
        return graph_file(part)
    return graph_file(part, precision)


def loaded_bytes(manifest: Manifest, runtime: RuntimeName, precision: Precision) -> int:
    """Size of the loaded files, including external weights."""
    vision, *others = loaded_graphs(manifest, runtime, precision)
    graphs = {graph.file for graph in (vision, *others)}
    if manifest.num_taps:
        graphs |= {tapped_graph(manifest, vision, head, runtime).file for head in others[1:]}
    return sum(
        entry.size_bytes
        for name, entry in manifest.files.items()
        if any(name.startswith(graph) for graph in graphs)
    )


def graph_digest(manifest: Manifest, file: str) -> str:
    """SHA-256 of a graph and its weights, from the manifest's digests.

    All files in the graph's folder that are not graphs count, since each may hold its weights, and
    so does the float32 graph of the same part.
    """
    folder = PurePosixPath(file).parent
    float32 = {graph_file(part) for part in get_args(Part) if file.startswith(f"onnx/{part}_")}
    counted = {
        name: entry.sha256
        for name, entry in manifest.files.items()
        if name in {file, *float32}
        or (PurePosixPath(name).parent == folder and not name.endswith(".onnx"))
    }
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def parity_in_use(
    manifest: Manifest, runtime: RuntimeName, precision: Precision
) -> tuple[ParityEntry, ...]:
    """Parity measurements of the loaded graphs on this runtime."""
    return tuple(
        entry
        for graph in loaded_graphs(manifest, runtime, precision)
        for entry in _entries(manifest, runtime, graph.file, graph.precision)
    )


def proof(manifest: Manifest, runtime: RuntimeName, precision: Precision) -> ParityEntry | None:
    """The passed measurement of the vision graph; None if a loaded tower failed."""
    if has_failed_tower(manifest, runtime, precision):
        return None
    file = loaded_file("vision", runtime, precision)
    return next(_entries(manifest, runtime, file, precision), None)


def has_failed_tower(manifest: Manifest, runtime: RuntimeName, precision: Precision) -> bool:
    """Whether a measurement of a loaded tower violated its limits."""
    return any(
        failures(manifest, runtime, graph.file, graph.precision)
        for graph in loaded_graphs(manifest, runtime, precision)
        if graph.part in TOWERS
    )


def failures(
    manifest: Manifest, runtime: RuntimeName, file: str, precision: Precision
) -> tuple[str, ...]:
    """The limits that a graph's measurement violated, as phrases with the numbers."""
    entries = _entries(manifest, runtime, file, precision)
    return tuple(failure for entry in entries for failure in entry.failures)


def _entries(
    manifest: Manifest, runtime: RuntimeName, file: str, precision: Precision
) -> Iterator[ParityEntry]:
    wanted = (file, runtime, precision)
    return (e for e in manifest.parity if (e.file, e.runtime, e.precision) == wanted)
