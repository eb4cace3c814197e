"""Distillation: a frozen teacher, no masking, every patch supervised, a student from scratch."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.features import VisionFeatures, vision_features
from training.data.batch import Batch
from training.heads import Centering, NameContrast, PrototypeHead
from training.losses.distillation import distillation_loss
from training.methods.base import Method, StepResult, model_width
from training.methods.pretrain import HeadConfig
from training.methods.terms import (
    TRUNK_WIDTH,
    NameContrastConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """Weights and settings of distillation.

    Attributes:
        patch_weight: Of the patch distillation, as beta in pretraining.
        patch_from: Share of the training after which the teacher joins in; a curriculum's first
            pictures are too small for it.
        patch_until: Share after which it is let go, so that it does not hold back a student that
            has overtaken it.
        head: The prototype head; its shape must be the teacher's.
        names: The fine-grained term.
        trunk_weight: Of what a frozen image trunk sees in single drawings; 0 leaves it out.
        text_locked_until: Share of the training in which the text tower stays as warmed up.
    """

    patch_weight: float = 2.0
    patch_from: float = 0.0
    patch_until: float = 1.0
    head: HeadConfig = field(default_factory=HeadConfig)
    names: NameContrastConfig = field(default_factory=NameContrastConfig)
    trunk_weight: float = 0.0
    text_locked_until: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrozenTeacher:
    """A finished pretraining run's model, teacher head and centering, in evaluation mode."""

    model: Tipsv2Model
    head: PrototypeHead
    centering: Centering

    def __post_init__(self) -> None:
        """Freeze everything."""
        for module in (self.model, self.head, self.centering):
            module.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def assign(self, pixels_B3HW: Tensor) -> Tensor:
        """Prototype assignments [B, N, K] of every patch of whole pictures."""
        features = vision_features(self.model, pixels_B3HW)
        assigned_BNK: Tensor = self.centering(self.head(features.patches_BND))
        return assigned_BNK


class Distill(Method):
    """A student with a fresh head, and its frozen teacher.

    Widths of student and teacher may differ: they meet in the space of prototypes. The teacher is
    no module of the student's, so checkpoints hold the student alone.
    """

    def __init__(self, model: Tipsv2Model, config: DistillConfig, teacher: FrozenTeacher) -> None:
        super().__init__()
        self.model, self.config = model, config
        width = model_width(model)
        self.head = config.head.build(width)
        self.contrast = NameContrast()
        self.projection = nn.Linear(width, TRUNK_WIDTH)
        self._teacher = teacher

    @property
    def shared_settings(self) -> DistillConfig:
        """See the base class."""
        return self.config

    def training_step(
        self, batch: Batch, *, progress: float, generator: torch.Generator
    ) -> StepResult:
        """One forward of the student and one of the teacher, both of the whole picture."""
        features = vision_features(self.model, batch.pixels_B3HW)
        loss, terms = self.shared_loss(features, batch, progress)
        if self.config.patch_from <= progress < self.config.patch_until:
            terms["patch"] = self._patch_term(features, batch)
            loss = loss + self.config.patch_weight * terms["patch"]
        return StepResult(loss=loss, metrics={name: t.detach() for name, t in terms.items()})

    def _patch_term(self, features: VisionFeatures, batch: Batch) -> Tensor:
        logits_BNK = self.head(features.patches_BND) / self.config.head.student_temperature
        return distillation_loss(logits_BNK, self._teacher.assign(batch.pixels_B3HW))
