"""Distillation of an image-text space, names at points and captions: no mask, all patches learn.

The teacher is an encoder that compares patches with texts, such as the one for photographs; it is
no Tipsv2Model, and its embeddings are wider than the student's. Its space is reduced to the axes in
which the known names lie. The student learns it through a projector: its own texts move with its
patches, which names them better than the teacher's texts did. Both CLS tokens learn captions of
scenes, without which sentences did not find images.

Shapes: B batch, V images that the teacher saw, N patches, p points along a side, D the student's
width, U names.
"""

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Tipsv2Model

from model.features import vision_tokens
from training.data.batch import Batch, TeacherCells
from training.losses.precision import without_autocast
from training.methods.base import Method, SharedConfig, Step, Terms, model_width
from training.methods.terms import embed_texts
from training.settings import STRICT


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SpaceConfig(SharedConfig):
    """Weights of the terms.

    Attributes:
        patch_weight: Of one minus the cosine of each patch with the teacher's.
        whole_weight: Of one minus the cosine of both CLS tokens with the teacher's.
        names_weight: Of the contrast with names, at points that show one.
    """

    patch_weight: NonNegativeFloat = 1.0
    whole_weight: NonNegativeFloat = 0.5
    names_weight: NonNegativeFloat = 1.0
    contrast_weight: NonNegativeFloat = 0.5


class SpaceDistill(Method):
    """A student of a teacher's space."""

    config: SpaceConfig

    def __init__(self, model: Tipsv2Model, config: SpaceConfig) -> None:
        super().__init__(model, config)
        width = model_width(model)
        self.projector = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.projector.weight)  # the space was turned towards the start's

    def training_step(self, batch: Batch, step: Step) -> tuple[Tensor, Terms]:
        """See the module's docstring."""
        if batch.cells is None:
            raise ValueError("the space of a teacher needs a batch with its cells")
        cells, config = batch.cells, self.config
        tokens, seen = vision_tokens(self.model, batch.pixels_B3HW), len(cells.patches_VND)
        loss, terms = self.caption_loss(tokens, batch, step)
        own = {
            "patch": self._unlike(tokens.patches_BND[:seen], cells.patches_VND),
            "whole": (
                self._unlike(tokens.cls1_BD[:seen], cells.cls1_VD)
                + self._unlike(tokens.cls2_BD[:seen], cells.cls2_VD)
            )
            / 2,
            "names": self._names_term(tokens.patches_BND, cells),
        }
        weights = (config.patch_weight, config.whole_weight, config.names_weight)
        loss = loss + torch.stack([w * t for w, t in zip(weights, own.values(), strict=True)]).sum()
        return loss, own | terms

    def _unlike(self, ours_D: Tensor, theirs_D: Tensor) -> Tensor:
        """One minus the mean cosine."""
        return 1 - F.cosine_similarity(self.projector(ours_D).float(), theirs_D, dim=-1).mean()

    def _names_term(self, patches_BND: Tensor, cells: TeacherCells) -> Tensor:
        """Cross-entropy of the name at a point among the batch's; cosines as masks have them."""
        names_UD = F.normalize(embed_texts(self.model, cells.names).float(), dim=-1)
        grid, points = round(patches_BND.shape[1] ** 0.5), cells.name_Bpp.shape[-1]
        unit_BDN = F.normalize(patches_BND.float(), dim=-1).transpose(1, 2)
        unit_BDpp = F.interpolate(
            unit_BDN.unflatten(2, (grid, grid)), size=(points, points), mode="bilinear"
        )
        is_named_Bpp = cells.name_Bpp >= 0
        if not is_named_Bpp.any():
            return patches_BND.sum() * 0 + names_UD.sum() * 0
        shown_nD = unit_BDpp.permute(0, 2, 3, 1)[is_named_Bpp]
        with without_autocast(shown_nD):
            logits_nU = shown_nD @ names_UD.T / self.log_temperature.exp()
        return F.cross_entropy(logits_nU, cells.name_Bpp[is_named_Bpp])
