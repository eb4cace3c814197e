"""Distillation of a whole image-text space: no mask, every patch supervised.

The teacher is an encoder that compares patches with texts, such as the one for photographs; it is
no Tipsv2Model, and its embeddings are wider than the student's. Its space is reduced to the axes in
which the known names lie, so its cosines, and with them its answers, carry over to the student.

Shapes: B batch, N patches, D the student's width, T the teacher's, K known names.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Tipsv2Model

from model.features import vision_tokens
from training.data.batch import Batch, TeacherCells
from training.losses.precision import without_autocast
from training.methods.base import Method, Step, StepResult
from training.methods.image_backbone import ImageBackboneConfig
from training.methods.terms import MIN_TEMPERATURE, NameContrastConfig
from training.targets import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceConfig:
    """Weights of the terms.

    Attributes:
        patch_weight: Of one minus the cosine of each patch with the teacher's.
        whole_weight: Of one minus the cosine of both CLS tokens with the teacher's.
        names_weight: Of the contrast of patches with all known names, where a patch shows one.
        min_temperature: Lower bound of the learnt temperature of that contrast.
    """

    patch_weight: float = 1.0
    whole_weight: float = 0.5
    names_weight: float = 0.5
    min_temperature: float = field(default=MIN_TEMPERATURE, repr=False)  # see OptimConfig

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.patch_weight, self.whole_weight, self.names_weight) < 0:
            raise ValueError("patch_weight, whole_weight and names_weight must not be below 0")
        if self.min_temperature <= 0:
            raise ValueError("min_temperature must be above 0")

    @property
    def contrast_weight(self) -> float:
        """No captions: texts are learnt in the warm-up."""
        return 0.0

    @property
    def names(self) -> NameContrastConfig:
        """No names of captions: `names_weight` is of names at patches."""
        return NameContrastConfig()

    @property
    def image_backbone(self) -> ImageBackboneConfig:
        """None: the teacher is one."""
        return ImageBackboneConfig()

    @property
    def text_locked_until(self) -> float:
        """The text tower stays as the warm-up left it."""
        return 1.0


class SpaceDistill(Method):
    """A student of a teacher's space."""

    config: SpaceConfig
    names_KD: Tensor

    def __init__(self, model: Tipsv2Model, config: SpaceConfig, space: Space) -> None:
        super().__init__(model, config)
        self.register_buffer("names_KD", space.names_KD, persistent=False)

    def training_step(self, batch: Batch, step: Step) -> StepResult:
        """See the module's docstring."""
        del step
        if batch.cells is None:
            raise ValueError("the space of a teacher needs a batch with its cells")
        cells, config = batch.cells, self.config
        tokens = vision_tokens(self.model, batch.pixels_B3HW)
        terms = {
            "patch": _unlike(tokens.patches_BND, cells.patches_BND),
            "whole": (
                _unlike(tokens.cls1_BD, cells.cls1_BD) + _unlike(tokens.cls2_BD, cells.cls2_BD)
            )
            / 2,
            "names": self._names_term(tokens.patches_BND, cells),
        }
        weights = (config.patch_weight, config.whole_weight, config.names_weight)
        loss = torch.stack([w * t for w, t in zip(weights, terms.values(), strict=True)]).sum()
        return StepResult(loss=loss, metrics={name: t.detach() for name, t in terms.items()})

    def _names_term(self, patches_BND: Tensor, cells: TeacherCells) -> Tensor:
        """Cross-entropy of the name that a patch shows among all known names."""
        is_named_BN = cells.name_BN >= 0
        if not is_named_BN.any():
            return patches_BND.sum() * 0
        shown_nD = F.normalize(patches_BND[is_named_BN].float(), dim=-1)
        with without_autocast(shown_nD):
            logits_nK = shown_nD @ self.names_KD.T / self.log_temperature.exp()
        return F.cross_entropy(logits_nK, cells.name_BN[is_named_BN])


def _unlike(ours_D: Tensor, theirs_D: Tensor) -> Tensor:
    """One minus the mean cosine."""
    return 1 - F.cosine_similarity(ours_D.float(), theirs_D, dim=-1).mean()
