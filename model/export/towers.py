"""A Tipsv2Model's two towers as ONNX graphs with free batch, sizes and text length.

What tracing would break is written differently: position embeddings (see `model.position`) and the
masked mean over tokens, whose tiny epsilon the exporter drops. Texts are short, so their attention
is written out; that of images is one operator (see `model.export.attention`).

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels.
"""

import onnx_ir
import torch
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.export.attention import FUSED
from model.export.tracing import EAGER, exportable, trace
from model.features import vision_features
from model.graphs import TEXT_OUTPUTS, VISION_OUTPUTS


class VisionGraph(nn.Module):
    """The vision tower with the four outputs that serving reads, as a plain tuple."""

    def __init__(self, model: Tipsv2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return cls1 [B, D], cls2 [B, D], patches [B, N, D] and value-path patches [B, N, D]."""
        features = vision_features(self.model, pixel_values)
        return features.cls1_BD, features.cls2_BD, features.patches_BND, features.values_BND


class TextGraph(nn.Module):
    """The text tower with a mean over tokens that stays finite for a row of padding."""

    def __init__(self, model: Tipsv2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return text embeddings [B, D]; zeros for a row without tokens."""
        output = self.model.text_model(input_ids=input_ids, attention_mask=attention_mask)
        hidden_BLD: Tensor = output.last_hidden_state
        weight_BL = attention_mask.to(hidden_BLD.dtype)
        total_BD = (hidden_BLD * weight_BL[..., None]).sum(dim=1)
        # Equal to transformers' `+ 1e-8` for every row that has a token.
        mean_BD: Tensor = total_BD / weight_BL.sum(dim=1, keepdim=True).clamp(min=1)
        return mean_BD


def trace_vision(model: Tipsv2Model, attention: str = FUSED) -> onnx_ir.Model:
    """The vision graph: `pixel_values` to cls1, cls2, patch and value embeddings.

    In memory; it refers to the model's weights.

    Args:
        model: In float32. Its mode and attention are as before afterwards.
        attention: How attention over images is written; see `model.export.attention`.
    """
    patch_size = model.vision_model.embeddings.patch_embeddings.projection.stride[0]
    # Batch, rows and columns differ, so that no two of them are taken for the same size.
    inputs = {"pixel_values": torch.rand(2, 3, 3 * patch_size, 5 * patch_size)}
    axes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}
    with exportable(model, attention):
        return trace(VisionGraph(model), inputs, outputs=VISION_OUTPUTS, axes=axes)


def trace_text(model: Tipsv2Model) -> onnx_ir.Model:
    """The text graph: `input_ids` and `attention_mask` to `text_embeddings`; as `trace_vision`."""
    token_ids_BL = torch.ones(3, 5, dtype=torch.int64)
    inputs = {"input_ids": token_ids_BL, "attention_mask": torch.ones_like(token_ids_BL)}
    axes = {name: {0: "batch", 1: "tokens"} for name in inputs}
    with exportable(model, EAGER):
        return trace(TextGraph(model), inputs, outputs=TEXT_OUTPUTS, axes=axes)
