"""Export the dense heads as ONNX graphs: depth, normals and segmentation.

The vision graph of a package with heads also has the outputs that they read (taps), so that one
pass through the tower serves embeddings and all heads.

The heads halve the patch grid and double it again. transformers resizes if the two sizes differ, a
branch that tracing would freeze. They never differ for even rows and columns of patches, so the
graphs omit the branch and take sizes that are multiples of two patches (28 pixels).

Shapes: B batch, S tapped blocks, N patches, T tokens, D embedding width, K classes, H W pixels,
h w patch rows and columns, H' W' eight times the patch rows and columns.
"""

import re
from collections.abc import Iterator
from typing import Final, cast

import onnx_ir
import torch
from torch import Tensor, nn
from transformers import Tipsv2DptForDensePrediction
from transformers.models.tipsv2_dpt.modeling_tipsv2_dpt import (
    Tipsv2DptDecoder,
    Tipsv2DptFeatureFusionLayer,
    Tipsv2DptNeck,
)

from model.class_names import ade20k_names
from model.export.tracing import exportable, trace
from model.features import NUM_CLS_TOKENS, vision_features
from model.graphs import DENSE_TASKS, TAPS, DenseTask

# Names that transformers makes for classes without one.
UNNAMED: Final = re.compile(r"LABEL_\d+")


class TappedVision(nn.Module):
    """The vision tower with its embeddings and the taps, after the backbone's final LayerNorm.

    Raises:
        ValueError: The backbone does not apply the final LayerNorm to its taps.
    """

    def __init__(self, dense: Tipsv2DptForDensePrediction) -> None:
        super().__init__()
        if not dense.backbone.config.apply_layernorm:
            raise ValueError(
                "the dense heads' backbone must have apply_layernorm=True, as released"
            )
        self.backbone = dense.backbone

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of `Encoder.vision`, then those of `TAPS`."""
        tower = self.backbone
        patch_height, patch_width = tower.embeddings.patch_embeddings.projection.stride
        rows, columns = pixel_values.shape[2] // patch_height, pixel_values.shape[3] // patch_width
        features = vision_features(tower, pixel_values, tapped_blocks=tower.config.out_indices)
        taps_BSTD = torch.stack(features.taps_BTD, dim=1)
        return (
            features.cls1_BD,
            features.cls2_BD,
            features.patches_BND,
            features.values_BND,
            taps_BSTD[:, :, 0],
            taps_BSTD[:, :, NUM_CLS_TOKENS:].unflatten(2, (rows, columns)),
        )


class DenseHead(nn.Module):
    """One head, from taps to its output."""

    def __init__(self, dense: Tipsv2DptForDensePrediction, task: DenseTask) -> None:
        super().__init__()
        self.neck: Tipsv2DptNeck = getattr(dense, f"{task}_neck")
        self.decoder: Tipsv2DptDecoder = getattr(dense, f"{task}_decoder")
        self.to_metres: nn.Module = dense.depth_bin_regressor if task == "depth" else nn.Identity()

    def forward(self, tap_cls: Tensor, tap_patches: Tensor) -> Tensor:
        """Return metres [B, H', W'], vectors [B, 3, H', W'] or logits [B, K, H', W']."""
        features = [
            conv(self._map(tap_cls, tap_patches, i)) for i, conv in enumerate(self.neck.convs)
        ]
        output: Tensor = self.to_metres(self.decoder(self._fuse(features[::-1])))
        return output

    def _map(self, cls_BSD: Tensor, patches_BShwD: Tensor, index: int) -> Tensor:
        """A stage's map: each patch with the CLS token, scaled."""
        stage = self.neck.reassemble_stage
        patches_BhwD = patches_BShwD[:, index]
        readout_BhwD = cls_BSD[:, index, None, None].expand_as(patches_BhwD)
        project = stage.readout_projects[index]
        projected_BhwD = project(torch.cat([patches_BhwD, readout_BhwD], dim=-1))
        scaled: Tensor = stage.layers[index](projected_BhwD.permute(0, 3, 1, 2).contiguous())
        return scaled

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


def num_taps(dense: Tipsv2DptForDensePrediction) -> int:
    """Number of blocks that the heads read."""
    return len(dense.backbone.config.out_indices)


def segmentation_labels(dense: Tipsv2DptForDensePrediction) -> list[str]:
    """Classes of the segmentation head, in the order of its outputs; released heads name none.

    Source: google-deepmind/tips, `pytorch/TIPS_decoder_inference.ipynb`: ADE20k.
    """
    names = [str(name) for _, name in sorted((dense.config.id2label or {}).items())]
    if not all(UNNAMED.fullmatch(name) for name in names):
        return names
    released = ade20k_names()
    if len(names) == len(released):
        return released
    return [f"class {number}" for number in range(1, len(names) + 1)]


def trace_heads(dense: Tipsv2DptForDensePrediction) -> Iterator[tuple[DenseTask, onnx_ir.Model]]:
    """Yield the graph of each head of a model in float32, with the model's weights."""
    for task in DENSE_TASKS:
        head, width = DenseHead(dense, task), dense.backbone.config.hidden_size
        yield task, trace_head(head, task, num_taps=num_taps(dense), width=width)


def trace_head(head: nn.Module, task: DenseTask, *, num_taps: int, width: int) -> onnx_ir.Model:
    """The graph of a head in float32, S taps of width D to an output named as the task."""
    # All axes differ in size, so that the tracer does not unify two of them.
    cls_BSD = torch.rand(2, num_taps, width)
    inputs = {"tap_cls": cls_BSD, "tap_patches": torch.rand(*cls_BSD.shape[:2], 6, 10, width)}
    axes = {"tap_cls": {0: "batch"}, "tap_patches": {0: "batch", 2: "rows", 3: "columns"}}
    assert tuple(inputs) == TAPS
    with exportable(head):
        model = trace(head, inputs, outputs=(task,), axes=axes)
    (output,) = model.graph.outputs
    assert output.shape is not None
    # The exporter's names of these two axes are arithmetic expressions.
    output.shape = onnx_ir.Shape([*output.shape[:-2], "map_height", "map_width"])
    return model
