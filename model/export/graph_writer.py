"""Export a model to ONNX graphs.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx_ir
import torch
from torch import nn
from transformers import Tipsv2DptForDensePrediction

from model.encoder import Encoder
from model.export.attention import FUSED
from model.export.dense import TappedVision, num_taps, segmentation_labels, trace_heads
from model.export.exact import store_exactly
from model.export.half import to_half
from model.export.int8 import calibration_inputs, quantise
from model.export.tracing import EAGER, exportable, save_graph, trace
from model.graphs import (
    DENSE_TASKS,
    TAPS,
    TEXT_OUTPUTS,
    VISION_OUTPUTS,
    ExportPrecision,
    Part,
    graph_file,
)
from model.manifest import Manifest, Output

TOWER_OUTPUTS: Final[tuple[Output, ...]] = ("patches", "values", "cls1", "cls2", "text")
# Height and width of common images, relative to the shorter side.
ASPECTS: Final = ((1, 1), (3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9))
# The depth head sums activations of about 1e8 before it divides by their sum: fp16, which ends at
# 65,504, gives the same depth everywhere. int8 is for images: an error in a class text is an error
# in every mask (with weights in 8 bits their agreement fell to 95 %), and texts are cached.
PARTS: Final[dict[ExportPrecision, frozenset[Part]]] = {
    "fp32": frozenset(("vision", "text", "depth", "normals", "segmentation")),
    "fp16": frozenset(("vision", "text", "normals", "segmentation")),
    "bf16": frozenset(("vision", "text", "depth", "normals", "segmentation")),
    "int8": frozenset(("vision",)),
}


def draft_manifest(
    encoder: Encoder, *, name: str, dense: Tipsv2DptForDensePrediction | None = None
) -> Manifest:
    """Draft a manifest from the encoder and its heads; files, parity and provenance come later.

    Raises:
        ValidationError: The name is not valid.
    """
    unit, native = encoder.size_multiple, encoder.native_size
    return Manifest(
        name=name,
        variant=encoder.variant,
        embed_dim=encoder.embed_dim,
        patch_size=encoder.patch_size,
        native_size=native,
        min_size=unit,
        max_size=4 * native,
        size_multiple=unit,
        shape_buckets=shape_buckets(native, unit),
        max_text_tokens=encoder.max_text_tokens,
        temperature=encoder.temperature,
        outputs=[*TOWER_OUTPUTS, *(() if dense is None else DENSE_TASKS)],
        num_taps=0 if dense is None else num_taps(dense),
        segmentation_labels=() if dense is None else segmentation_labels(dense),
        cpu_runtime=encoder.cpu_runtime,
        cpu_precision=encoder.cpu_precision,
        licence="unknown",
    )


def shape_buckets(native: int, unit: int) -> list[tuple[int, int]]:
    """The native square, and common aspect ratios with the same shorter side."""
    buckets = []
    for height, width in ASPECTS:
        scale = native / min(height, width) / unit
        buckets.append((round(height * scale) * unit, round(width * scale) * unit))
    return buckets


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackageContent:
    """An encoder, and how to package it.

    Attributes:
        encoder: The encoder in float32 and evaluation mode.
        draft: The manifest without files and parity; see `draft_manifest`.
        card: The author's text of the model card.
        dense: Backbone and heads for depth, normals and segmentation, in float32.
        precisions: Precisions of additional graphs; fp32 is always written.
        may_fail: Those of them that are left out if a tower differs from the model.
        is_graphs_only: Leave the weights for torch out, for a package that must be small. Then the
            runtime torch cannot run it, and graphs cannot be added or compared again.
    """

    encoder: Encoder
    draft: Manifest
    card: str
    dense: Tipsv2DptForDensePrediction | None = None
    precisions: tuple[ExportPrecision, ...] = ()
    may_fail: tuple[ExportPrecision, ...] = ()
    is_graphs_only: bool = False


def trace_vision(
    vision: nn.Module, unit: int, attention: str = FUSED, *, outputs: Sequence[str] = VISION_OUTPUTS
) -> onnx_ir.Model:
    """Trace the vision graph: `pixel_values` to cls1, cls2, patch and value embeddings.

    It is in memory and shares the tower's weights; the tower's mode and attention are restored.

    Args:
        vision: As `Encoder.vision`.
        unit: Heights and widths are multiples of it.
        attention: How attention over images is exported; see `model.export.attention`.
        outputs: Names of the outputs, more with taps.
    """
    # All axes differ in size, so that the tracer does not unify two of them.
    inputs = {"pixel_values": torch.rand(2, 3, 3 * unit, 5 * unit)}
    axes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}
    with exportable(vision, attention):
        return trace(vision, inputs, outputs=outputs, axes=axes)


def trace_text(text: nn.Module) -> onnx_ir.Model:
    """Trace the text graph of `Encoder.text`: ids and mask to `text_embeddings`."""
    token_ids_BL = torch.ones(3, 5, dtype=torch.int64)
    inputs = {"input_ids": token_ids_BL, "attention_mask": torch.ones_like(token_ids_BL)}
    axes = {name: {0: "batch", 1: "tokens"} for name in inputs}
    with exportable(text, EAGER):
        return trace(text, inputs, outputs=TEXT_OUTPUTS, axes=axes)


def write_graphs(content: PackageContent, folder: Path, progress: Callable[[str], None]) -> None:
    """Write every graph of a package; `model.graphs.graph_file` names them."""
    precisions: list[ExportPrecision] = list(dict.fromkeys(("fp32", *content.precisions)))
    for part, traced in _traced(content, progress):
        for precision in precisions:
            if part not in _parts(precision, is_small=content.is_graphs_only):
                continue
            if precision != "fp32":
                progress(f"exporting the {part} graph in {precision}")
            graph = _in_precision(content, traced, precision)
            # Not int8: OpenVINO maps those weights, which do not begin at whole pages.
            is_half = precision in {"fp16", "bf16"}
            float32 = folder / graph_file(part) if is_half else None
            save_graph(graph, folder / graph_file(part, precision), stored_in=float32)
        # The exporter keeps its last graph, and with it views of the model's weights.
        for value in traced.graph.initializers.values():
            value.const_value = None


def _parts(precision: ExportPrecision, *, is_small: bool) -> frozenset[Part]:
    """Parts with a graph in a precision; the others are computed in float32."""
    return PARTS[precision] & {"vision"} if is_small and precision != "fp32" else PARTS[precision]


def _traced(
    content: PackageContent, progress: Callable[[str], None]
) -> Iterator[tuple[Part, onnx_ir.Model]]:
    """Yield the float32 graph of each part; one is in memory at a time."""
    progress("exporting the vision graph")
    unit = content.draft.size_multiple
    if content.dense is None:
        yield "vision", trace_vision(content.encoder.vision, unit)
    else:
        tapped = TappedVision(content.dense)
        yield "vision", trace_vision(tapped, unit, outputs=(*VISION_OUTPUTS, *TAPS))
    progress("exporting the text graph")
    yield "text", trace_text(content.encoder.text)
    if content.dense is not None:
        progress("exporting the graphs of the dense heads")
        yield from trace_heads(content.dense)


def _in_precision(
    content: PackageContent, traced: onnx_ir.Model, precision: ExportPrecision
) -> onnx_ir.Model:
    graph = traced.clone()
    if precision == "fp32":
        store_exactly(graph)
    elif precision in {"fp16", "bf16"}:
        to_half(graph, "fp16" if precision == "fp16" else "bf16")
    else:
        sizes = content.draft
        graph = quantise(graph, calibration_inputs(sizes.native_size, sizes.size_multiple))
        store_exactly(graph)
    return graph
