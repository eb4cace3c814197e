"""Writes a package's graphs: each part in float32, and in the precisions that were asked for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import onnx_ir

from model.export.calibration import calibration_inputs
from model.export.content import PackageContent
from model.export.dense import trace_dense
from model.export.half import to_half
from model.export.int8 import quantise
from model.export.int8_weights import store_weights_in_8_bits
from model.export.saving import SharedWeights, save_graph
from model.export.towers import trace_text, trace_vision
from model.graphs import DENSE_TASKS, Part, Precision, graph_file

# The depth head sums up activations of about 1e8 before it divides by their sum: fp16 ends at
# 65,504 and gives one depth everywhere. 8 bits are for the towers, where the work is; weights alone
# may be small in the other two heads as well.
PARTS: Final[dict[Precision, frozenset[Part]]] = {
    "fp32": frozenset(("vision", "text", "depth", "normals", "segmentation")),
    "fp16": frozenset(("vision", "text", "normals", "segmentation")),
    "bf16": frozenset(("vision", "text", "depth", "normals", "segmentation")),
    "int8_weights": frozenset(("vision", "text", "normals", "segmentation")),
    "int8": frozenset(("vision", "text")),
}


def write_graphs(content: PackageContent, folder: Path, progress: Callable[[str], None]) -> None:
    """Write every graph of a package.

    Args:
        content: Its models, and which precisions.
        folder: The package; graphs are named by `model.graphs.graph_file`.
        progress: Called with what is being done.

    Raises:
        ValueError: An unknown precision, or a calibration folder without images.
    """
    unknown = [precision for precision in content.precisions if precision not in PARTS]
    if unknown:
        raise ValueError(f"unknown precisions {unknown}; choose from {', '.join(PARTS)}")
    precisions: list[Precision] = list(dict.fromkeys(("fp32", *content.precisions)))
    with ExitStack() as files:
        weights = {
            precision: files.enter_context(SharedWeights(_dense_weights(folder, precision)))
            for precision in precisions
            if content.dense is not None and PARTS[precision] & set(DENSE_TASKS)
        }
        for part, traced in _traced(content, progress):
            for precision in precisions:
                if part not in PARTS[precision]:
                    continue
                if precision != "fp32":
                    progress(f"exporting the {part} graph in {precision}")
                graph = _in_precision(content, part, traced, precision)
                path = folder / graph_file(part, precision)
                if part in {"vision", "text"}:
                    save_graph(graph, path)
                else:
                    weights[precision].take_from(graph)
                    onnx_ir.save(graph, path)


def _traced(
    content: PackageContent, progress: Callable[[str], None]
) -> Iterator[tuple[Part, onnx_ir.Model]]:
    """Each part's graph in float32, one at a time."""
    progress("exporting the vision graph")
    yield "vision", trace_vision(content.model)
    progress("exporting the text graph")
    yield "text", trace_text(content.model)
    if content.dense is not None:
        for task in DENSE_TASKS:
            progress(f"exporting the {task} graph")
            yield task, trace_dense(content.dense, task)


def _in_precision(
    content: PackageContent, part: Part, traced: onnx_ir.Model, precision: Precision
) -> onnx_ir.Model:
    graph = traced.clone()
    if precision in {"fp16", "bf16"}:
        to_half(graph, "fp16" if precision == "fp16" else "bf16")
    elif precision == "int8" and part == "vision":
        sizes = content.draft
        graph = quantise(
            graph, calibration_inputs(content.calibration, sizes.native_size, sizes.size_multiple)
        )
    elif precision in {"int8", "int8_weights"}:
        # Of texts the weights alone: an error in one text is an error in every mask, the mask
        # agreement fell to 95 % with activations, and text embeddings are cached.
        store_weights_in_8_bits(graph)
    return graph


def _dense_weights(folder: Path, precision: Precision) -> Path:
    name = Path(graph_file("depth", precision)).name.replace("depth", "dense")
    return folder / "onnx" / f"{name}.data"
