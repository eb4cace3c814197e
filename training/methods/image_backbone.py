"""What a frozen image trunk and plain titles add: drawings beyond our names, patch by patch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Tipsv2Model

from model.features import VisionTokens
from training.data.batch import UnnamedDrawings
from training.distributed import gather_rows, num_ranks, sum_over_ranks
from training.losses.contrastive import contrastive_loss
from training.methods.terms import MIN_TEMPERATURE, embed_texts

TRUNK_WIDTH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkConfig:
    """The trunk's terms.

    Attributes:
        weight: Of one minus the cosine with what the trunk sees, patch by patch and in the mean of
            each image; 0 leaves the trunk out.
        scenes_until: Share of the training in which it looks at the scenes as well as at unnamed
            drawings: while they are close-ups of one drawing, it knows best.
        titles_weight: Of the contrast of unnamed drawings' CLS1 with their titles.
    """

    weight: float = 0.0
    scenes_until: float = 0.3
    titles_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.weight, self.titles_weight) < 0:
            raise ValueError("trunk.weight and trunk.titles_weight must not be below 0")


def trunk_term(patches_BND: Tensor, cells_BNK: Tensor, projection: nn.Linear) -> Tensor:
    """One minus the cosine of projected patches with the trunk's cells, plus that of the means."""
    projected_BNK = projection(patches_BND).float()
    patch_BN = F.cosine_similarity(projected_BNK, cells_BNK, dim=-1)
    whole_B = F.cosine_similarity(projected_BNK.mean(1), cells_BNK.mean(1), dim=-1)
    return (1 - patch_BN.mean()) + (1 - whole_B.mean())


def title_term(
    model: Tipsv2Model,
    tokens: VisionTokens,
    drawings: UnnamedDrawings,
    *,
    locked: bool = False,
    min_temperature: float = MIN_TEMPERATURE,
) -> Tensor:
    """InfoNCE of CLS1 with the titles, over the global batch; 0 where no rank has a title."""
    if sum_over_ranks([len(drawings.titles)], tokens.cls1_BD.device) == [0]:
        return tokens.cls1_BD.new_zeros(())
    texts_TD = embed_texts(model, drawings.titles, locked=locked)
    rows_TF = torch.cat([tokens.cls1_BD[drawings.titled_E].float(), texts_TD.float()], dim=1)
    (rows_GF, ids_G), own = gather_rows(rows_TF, drawings.title_ids_T)
    images_GD, texts_GD = rows_GF.chunk(2, dim=1)
    temperature = model.temperature.clamp(min=min_temperature)
    rows = None if num_ranks() == 1 else own
    return contrastive_loss(images_GD, texts_GD, temperature, ids_G, rows=rows) * num_ranks()
