"""Embeddings of a Tipsv2Model: two CLS tokens, patches, value-path patches, and texts.

transformers returns the final tokens only. Zero-shot segmentation also needs the value path of the
last block; here one pass computes both. Training, evaluation and export use the same code.

Shapes: B batch, N patches in row-major order, D width, L text tokens, H W pixels.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from torch import Tensor
from transformers import Tipsv2Model
from transformers.models.tipsv2.modeling_tipsv2 import Tipsv2VisionLayer, Tipsv2VisionModel

from model.position import embed_pixels

NUM_CLS_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionTokens:
    """Tokens of a batch of images, after the final LayerNorm, not normalised to unit length.

    `cls1_BD` was trained on short captions, `cls2_BD` (transformers' "register token") on long
    ones.
    """

    cls1_BD: Tensor
    cls2_BD: Tensor
    patches_BND: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionFeatures(VisionTokens):
    """Tokens, patch tokens of the value path, and all tokens after the tapped blocks."""

    values_BND: Tensor
    taps_BTD: tuple[Tensor, ...] = ()


def _value_path(layer: Tipsv2VisionLayer, tokens_BND: Tensor) -> Tensor:
    """Run a block in which each token attends only to itself."""
    attention = layer.attention
    values_BND = attention.o_proj(attention.v_proj(layer.norm1(tokens_BND)))
    tokens_BND = tokens_BND + layer.layer_scale1(values_BND)
    output_BND: Tensor = tokens_BND + layer.layer_scale2(layer.mlp(layer.norm2(tokens_BND)))
    return output_BND


def vision_tokens(
    model: Tipsv2Model | Tipsv2VisionModel, pixels_B3HW: Tensor, masked_BN: Tensor | None = None
) -> VisionTokens:
    """Encode images without the value path, which most of training does not use.

    Args: as for `vision_features`.
    """
    tower = model.vision_model if isinstance(model, Tipsv2Model) else model
    tokens_BTD = embed_pixels(tower.embeddings, pixels_B3HW, masked_BN)
    for layer in tower.encoder.layer:
        tokens_BTD = layer(tokens_BTD, None)
    final_BTD = tower.layernorm(tokens_BTD)
    return VisionTokens(
        cls1_BD=final_BTD[:, 0], cls2_BD=final_BTD[:, 1], patches_BND=final_BTD[:, NUM_CLS_TOKENS:]
    )


def vision_features(
    model: Tipsv2Model | Tipsv2VisionModel,
    pixels_B3HW: Tensor,
    masked_BN: Tensor | None = None,
    *,
    tapped_blocks: Collection[int] = (),
) -> VisionFeatures:
    """Encode images.

    Args:
        model: The whole model or its vision tower.
        pixels_B3HW: RGB in [0, 1], no normalisation; H and W multiples of the patch size.
        masked_BN: bool; patches to replace by the mask token.
        tapped_blocks: Blocks, from 1, whose tokens dense heads read.

    Returns:
        All kinds of features, in the model's dtype.

    Source: the values trick is MaskCLIP's (arXiv:2112.01071); this form, which keeps the residual
    and the MLP, is the one of google-deepmind/tips, TIPS zero-shot segmentation notebook.
    """
    tower = model.vision_model if isinstance(model, Tipsv2Model) else model
    tokens_BTD = embed_pixels(tower.embeddings, pixels_B3HW, masked_BN)
    *layers, last = cast("list[Tipsv2VisionLayer]", list(tower.encoder.layer))
    taps_BTD = []
    for number, layer in enumerate(layers, start=1):
        tokens_BTD = layer(tokens_BTD, None)
        if number in tapped_blocks:
            taps_BTD.append(tower.layernorm(tokens_BTD))
    final_BTD = tower.layernorm(last(tokens_BTD, None))
    if len(tower.encoder.layer) in tapped_blocks:
        taps_BTD.append(final_BTD)
    values_BND = tower.layernorm(_value_path(last, tokens_BTD[:, NUM_CLS_TOKENS:]))
    return VisionFeatures(
        cls1_BD=final_BTD[:, 0],
        cls2_BD=final_BTD[:, 1],
        patches_BND=final_BTD[:, NUM_CLS_TOKENS:],
        values_BND=values_BND,
        taps_BTD=tuple(taps_BTD),
    )


def text_features(model: Tipsv2Model, token_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Embed texts [B, D], not normalised, from int64 ids, right-padded with 0, and their mask."""
    output = model.get_text_features(input_ids=token_ids_BL, attention_mask=mask_BL)
    return cast("Tensor", output.pooler_output)
