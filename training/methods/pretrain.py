"""Pretraining: two caption streams and iBOT++ with head-only EMA.

One step: the whole picture goes through the encoder once, for both CLS tokens and, without
gradient, for the teacher head; the masked picture goes through it once more, for the student head.
"""

import copy
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.features import VisionFeatures, vision_features
from training.data.batch import Batch
from training.ema import update_ema
from training.heads import Centering, NameContrast, PrototypeHead
from training.losses.ibot import Supervised, ibot_loss
from training.masking import random_masks
from training.methods.base import Method, StepResult, model_width
from training.methods.terms import (
    TRUNK_WIDTH,
    NameContrastConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """Shape and temperatures of the prototype head (TIPSv2 publishes none of them)."""

    hidden: int = 384
    bottleneck: int = 96
    num_prototypes: int = 512
    student_temperature: float = 0.1
    teacher_temperature: float = 0.06
    ema_momentum: float = 0.99

    def build(self, dim: int) -> PrototypeHead:
        """Build a head for tokens of width `dim`."""
        return PrototypeHead(
            dim, hidden=self.hidden, bottleneck=self.bottleneck, num_prototypes=self.num_prototypes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Weights and settings of pretraining.

    Attributes:
        ibot_weight: beta of the paper, 2.
        ibot_start: Share of the training after which the patch loss joins in; from the first step
            it delays the contrastive loss in small models.
        mask_ratio: 0.75 in the paper; 0 collapses patch-text alignment in pretraining.
        supervised: "all" is iBOT++, "masked" iBOT.
        head: The prototype head.
        names: The fine-grained term.
        trunk_weight: Of what a frozen image trunk sees in single drawings; 0 leaves it out.
        text_locked_until: Share of the training in which the text tower stays as warmed up.
    """

    ibot_weight: float = 2.0
    ibot_start: float = 0.5
    mask_ratio: float = 0.75
    supervised: Supervised = "all"
    head: HeadConfig = field(default_factory=HeadConfig)
    names: NameContrastConfig = field(default_factory=NameContrastConfig)
    trunk_weight: float = 0.0
    text_locked_until: float = 0.2

    def __post_init__(self) -> None:
        """Check what the patch loss cannot do without."""
        if self.supervised not in get_args(Supervised):
            raise ValueError(f"supervised must be one of {get_args(Supervised)}")
        if self.supervised == "masked" and self.mask_ratio <= 0:
            raise ValueError("iBOT supervises masked patches only: mask_ratio must be above 0")


class Pretrain(Method):
    """A model, its projector head and the head's moving average."""

    def __init__(self, model: Tipsv2Model, config: PretrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        width = model_width(model)
        self.head = config.head.build(width)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(requires_grad=False)
        self.centering = Centering(
            config.head.num_prototypes, temperature=config.head.teacher_temperature
        )
        self.contrast = NameContrast()
        self.projection = nn.Linear(width, TRUNK_WIDTH)

    @property
    def shared_settings(self) -> PretrainConfig:
        """See the base class."""
        return self.config

    def training_step(
        self, batch: Batch, *, progress: float, generator: torch.Generator
    ) -> StepResult:
        """See the module's docstring."""
        features = vision_features(self.model, batch.pixels_B3HW)
        loss, terms = self.shared_loss(features, batch, progress)
        if self.config.ibot_weight > 0 and progress >= self.config.ibot_start:
            terms["ibot"] = self._ibot_term(features, batch, generator)
            loss = loss + self.config.ibot_weight * terms["ibot"]
        return StepResult(loss=loss, metrics={name: t.detach() for name, t in terms.items()})

    def _ibot_term(
        self, features: VisionFeatures, batch: Batch, generator: torch.Generator
    ) -> Tensor:
        targets_BNK = self.centering(self.teacher_head(features.patches_BND.detach()))
        batch_size, num_patches = features.patches_BND.shape[:2]
        masked_BN = random_masks(batch_size, num_patches, self.config.mask_ratio, generator)
        student = vision_features(self.model, batch.pixels_B3HW, masked_BN)
        logits_BNK = self.head(student.patches_BND) / self.config.head.student_temperature
        return ibot_loss(logits_BNK, targets_BNK, masked_BN, self.config.supervised)

    def after_step(self) -> None:
        """Move the teacher head; the encoder has no average (head-only EMA)."""
        update_ema(self.teacher_head, self.head, self.config.head.ema_momentum)
