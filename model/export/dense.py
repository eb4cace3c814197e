"""Export the dense heads as ONNX graphs: depth, normals and segmentation, each with its backbone.

The heads halve the patch grid and double it again. transformers resizes if the two sizes differ, a
branch that tracing would freeze. They never differ for even rows and columns of patches, so the
graphs omit the branch and take sizes that are multiples of two patches (28 pixels).

Shapes: B batch, N patches, D embedding width, K classes, H W pixels, h w patch rows and columns,
H' W' eight times the patch rows and columns.
"""

from collections.abc import Iterator
from typing import cast

import onnx_ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn
from transformers import Tipsv2DptForDensePrediction
from transformers.models.tipsv2_dpt.modeling_tipsv2_dpt import (
    Tipsv2DptDecoder,
    Tipsv2DptFeatureFusionLayer,
    Tipsv2DptNeck,
)

from model.export.tracing import exportable, trace
from model.graphs import DENSE_TASKS, DenseTask
from model.position import embed_pixels


class DenseGraph(nn.Module):
    """The backbone with all heads, which read four of its layers (taps)."""

    def __init__(self, dense: Tipsv2DptForDensePrediction) -> None:
        super().__init__()
        self.backbone = dense.backbone
        self.heads = nn.ModuleList(_Head(dense, task) for task in DENSE_TASKS)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return metres [B, H', W'], vectors [B, 3, H', W'] and logits [B, K, H', W']."""
        tower = self.backbone
        patch_height, patch_width = tower.embeddings.patch_embeddings.projection.stride
        rows, columns = pixel_values.shape[2] // patch_height, pixel_values.shape[3] // patch_width
        taps = self._taps(embed_pixels(tower.embeddings, pixel_values))
        return tuple(head(taps, rows, columns) for head in self.heads)

    def _taps(self, tokens_BTD: Tensor) -> list[Tensor]:
        tower = self.backbone
        taps = []
        for index, layer in enumerate(tower.encoder.layer, start=1):
            tokens_BTD = layer(tokens_BTD, None)
            if index in tower.config.out_indices:
                taps.append(tower.layernorm(tokens_BTD))
        return taps


class _Head(nn.Module):
    """One head, from taps to its output."""

    def __init__(self, dense: Tipsv2DptForDensePrediction, task: DenseTask) -> None:
        super().__init__()
        self.neck: Tipsv2DptNeck = getattr(dense, f"{task}_neck")
        self.decoder: Tipsv2DptDecoder = getattr(dense, f"{task}_decoder")
        self.to_metres: nn.Module = dense.depth_bin_regressor if task == "depth" else nn.Identity()

    def forward(self, taps: list[Tensor], rows: int, columns: int) -> Tensor:
        maps = self.neck.reassemble_stage(taps, rows, columns)
        features = [conv(map_) for conv, map_ in zip(self.neck.convs, maps, strict=True)]
        output: Tensor = self.to_metres(self.decoder(self._fuse(features[::-1])))
        return output

    def _fuse(self, deepest_first: list[Tensor]) -> Tensor:
        fused: Tensor | None = None
        for layer, map_ in zip(self.neck.fusion_stage.layers, deepest_first, strict=True):
            level = cast("Tipsv2DptFeatureFusionLayer", layer)
            entering = map_ if fused is None else fused + level.residual_layer1(map_)
            fused = _double(level, entering)
        assert fused is not None
        return fused


def _double(layer: Tipsv2DptFeatureFusionLayer, map_: Tensor) -> Tensor:
    doubled = nn.functional.interpolate(
        layer.residual_layer2(map_), scale_factor=2, mode="bilinear", align_corners=True
    )
    projected: Tensor = layer.projection(doubled)
    return projected


def trace_dense(
    dense: Tipsv2DptForDensePrediction,
) -> Iterator[tuple[DenseTask, onnx_ir.Model]]:
    """Yield the graph of each head: `pixel_values` [B, 3, H, W] to an output named as the task.

    All heads are traced at once: the backbone takes most of the time. The graphs are in memory and
    share the model's weights.

    Args:
        dense: The model in float32; its mode and attention are restored.

    Raises:
        ValueError: The backbone does not apply the final LayerNorm to its taps.
    """
    if not dense.backbone.config.apply_layernorm:
        raise ValueError("the dense heads' backbone must have apply_layernorm=True, as released")
    patch_size = dense.backbone.embeddings.patch_embeddings.projection.stride[0]
    inputs = {"pixel_values": torch.rand(2, 3, 4 * patch_size, 6 * patch_size)}
    axes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}
    with exportable(dense):
        whole = trace(DenseGraph(dense), inputs, outputs=DENSE_TASKS, axes=axes)
    for index, task in enumerate(DENSE_TASKS):
        model = whole.clone()
        output = model.graph.outputs[index]
        model.graph.outputs[:] = [output]
        common.RemoveUnusedNodesPass()(model)
        assert output.shape is not None
        # The exporter's names of these two axes are arithmetic expressions.
        output.shape = onnx_ir.Shape([*output.shape[:-2], "map_height", "map_width"])
        yield task, model
