"""Loss terms from a frozen image backbone and from titles of drawings, for small models.

A small data set has few drawings and few styles. A network trained on a million photos gives
targets for every patch, also of thousands of drawings without a class name. Not part of TIPSv2,
which has no shortage of images.

Each term is this rank's share: the mean over the ranks is the value for the global batch.

Shapes: B batch, E unnamed drawings, T titled ones, G those of all ranks, N patches, D width, K the
backbone's reduced width.
"""

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Tipsv2Model

from model.features import VisionTokens
from training.data.batch import UnnamedDrawings
from training.distributed import gather_rows, num_ranks, sum_over_ranks
from training.losses.contrastive import contrastive_loss
from training.methods.terms import embed_texts
from training.settings import STRICT

TARGET_WIDTH = 256
"""K: numbers per patch that the student learns, reduced from the backbone's 1280."""


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ImageBackboneConfig:
    """Settings of the terms.

    Attributes:
        weight: Of one minus the cosine with the backbone's features, per patch and for the mean of
            each image; 0 turns the term off.
        scenes_until: Share of the training in which scenes are used as well as unnamed drawings.
            The backbone's features are best for close-ups of one drawing, which come first.
        titles_weight: Of the contrast of CLS1 of unnamed drawings with their titles.
    """

    weight: NonNegativeFloat = 0.0
    scenes_until: float = 0.3
    titles_weight: NonNegativeFloat = 0.0


def image_backbone_term(patches_BND: Tensor, cells_BNK: Tensor, projection: nn.Linear) -> Tensor:
    """One minus the cosine of projected patches with the backbone's, plus that of the means."""
    projected_BNK = projection(patches_BND).float()
    patch_BN = F.cosine_similarity(projected_BNK, cells_BNK, dim=-1)
    whole_B = F.cosine_similarity(projected_BNK.mean(1), cells_BNK.mean(1), dim=-1)
    return (1 - patch_BN.mean()) + (1 - whole_B.mean())


def title_term(
    model: Tipsv2Model, tokens: VisionTokens, drawings: UnnamedDrawings, temperature: Tensor
) -> Tensor:
    """InfoNCE of CLS1 with the titles over the global batch; 0 if no rank has a title."""
    if sum_over_ranks([len(drawings.titles)]) == [0]:
        return tokens.cls1_BD.new_zeros(())
    texts_TD = embed_texts(model, drawings.titles)
    rows_TF = torch.cat([tokens.cls1_BD[drawings.titled_E].float(), texts_TD.float()], dim=1)
    (rows_GF, ids_G), own = gather_rows(rows_TF, drawings.title_ids_T)
    images_GD, texts_GD = rows_GF.chunk(2, dim=1)
    rows = None if num_ranks() == 1 else own
    return contrastive_loss(images_GD, texts_GD, temperature, ids_G, rows=rows) * num_ranks()
