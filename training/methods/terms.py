"""Loss terms that pretraining and distillation share: captions, names in patches, the trunk.

Shapes: B batch, N patches, L tokens, U names, D width, K the trunk's width.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Tipsv2Model

from model.features import VisionFeatures, text_features
from training.data.batch import Batch, TextBatch
from training.heads import NameContrast
from training.losses.contrastive import contrastive_loss
from training.losses.fine_grained import patch_name_loss

PatchFeatures = Literal["patches", "values"]

TRUNK_WIDTH = 256
_MIN_TEMPERATURE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class NameContrastConfig:
    """The fine-grained term, which is ours and not TIPSv2's.

    Attributes:
        weight: 0 leaves it out.
        features: Which patch features it acts on.
        num_shown: How many patches must show each name.
    """

    weight: float = 0.0
    features: PatchFeatures = "patches"
    num_shown: int = 4

    def __post_init__(self) -> None:
        """Check what no type checks at run time."""
        if self.features not in get_args(PatchFeatures):
            raise ValueError(f"features must be one of {get_args(PatchFeatures)}")
        if self.num_shown < 1:
            raise ValueError("num_shown must be at least 1")


def embed_texts(model: Tipsv2Model, texts: TextBatch, *, locked: bool = False) -> Tensor:
    """Text embeddings [B, D], not normalised; without gradient where the tower is locked."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not locked):
        return text_features(model, texts.token_ids_BL, texts.mask_BL)


def caption_terms(
    model: Tipsv2Model, features: VisionFeatures, batch: Batch, *, locked: bool = False
) -> dict[str, Tensor]:
    """InfoNCE of CLS1 with the short and of CLS2 with the long captions."""
    temperature = model.temperature.clamp(min=_MIN_TEMPERATURE)
    return {
        "cls1": contrastive_loss(
            features.cls1_BD,
            embed_texts(model, batch.cls1, locked=locked),
            temperature,
            batch.cls1_ids_T,
        ),
        "cls2": contrastive_loss(
            features.cls2_BD,
            embed_texts(model, batch.cls2, locked=locked),
            temperature,
            batch.cls2_ids_T,
        ),
    }


def name_term(
    model: Tipsv2Model,
    features: VisionFeatures,
    batch: Batch,
    *,
    contrast: NameContrast,
    config: NameContrastConfig,
    locked: bool = False,
) -> Tensor:
    """Patch-name contrast of a batch."""
    patches_BND = features.patches_BND if config.features == "patches" else features.values_BND
    return patch_name_loss(
        patches_BND,
        embed_texts(model, batch.names, locked=locked),
        batch.present_BU,
        scale=contrast.scale(),
        nothing=contrast.nothing,
        num_shown=min(config.num_shown, patches_BND.shape[1]),
    )


def trunk_term(features: VisionFeatures, batch: Batch, projection: nn.Linear) -> Tensor:
    """One minus the cosine of the mean patch with the trunk's target, where there is one."""
    single_B = batch.targets_BK.abs().sum(1) > 0
    if not single_B.any():
        return features.patches_BND.new_zeros(())
    mean_BD = features.patches_BND[single_B].mean(1)
    predicted_BK = projection(mean_BD).float()
    return 1 - F.cosine_similarity(predicted_BK, batch.targets_BK[single_B]).mean()
