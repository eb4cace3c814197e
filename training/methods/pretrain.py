"""Pretraining: two caption streams, DINO over local crops and iBOT++, with head-only EMA.

In each step the whole image goes through the encoder once, for both CLS tokens and, without
gradient, for the teacher head. The masked image and the local crops go through it for the student
head. With full EMA the averaged encoder encodes the whole image as well.
"""

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.features import VisionTokens, vision_tokens
from training.data.batch import Batch
from training.heads import NameContrast
from training.methods.base import Step, Terms, model_width
from training.methods.captioned import CaptionedConfig, CaptionedMethod
from training.methods.terms import TARGET_WIDTH
from training.settings import STRICT, Share
from training.targets import (
    Centering,
    EmaScope,
    averaged_copy,
    patch_targets,
    update_ema,
    whole_targets,
)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PretrainConfig(CaptionedConfig):
    """Weights and settings of pretraining; the defaults are the paper's where it gives any.

    Attributes:
        ibot_weight: beta of the paper, 2.
        ibot_start: Share of the training after which the patch loss starts; 0 in the paper, but in
            small models the patch loss slows down the contrastive loss.
        head_alone_until: Share of the training until which the patch loss trains the head alone. A
            new head on a trained encoder would first undo what the encoder has learnt.
        ibot_ramp_until: Share of the training until which the weight of the patch loss rises from 0
            to beta, from `head_alone_until` on.
        mask_ratio: 0.75 in the paper; 0 collapses patch-text alignment in pretraining. With
            `supervised` "all" it is iBOT++, with "masked" iBOT.
        ema: Scope of the moving average: "head" is TIPSv2's, "full" adds the vision tower, with
            "none" the head is its own teacher.
    """

    ibot_weight: NonNegativeFloat = 2.0
    ibot_start: float = 0.0
    head_alone_until: float = 0.0
    ibot_ramp_until: float = 0.0
    mask_ratio: Share = 0.75
    ema: EmaScope = "head"


class Pretrain(CaptionedMethod):
    """A model, its projector heads and the moving averages."""

    config: PretrainConfig

    def __init__(self, model: Tipsv2Model, config: PretrainConfig) -> None:
        super().__init__(model, config)
        width, is_averaged = model_width(model), config.ema != "none"
        self.head = config.head.build(width)
        self.teacher_head = averaged_copy(self.head) if is_averaged else None
        self.teacher_tower = averaged_copy(model.vision_model) if config.ema == "full" else None
        self.centering = self._new_centering()
        self.global_centering = self._new_centering() if config.dino_weight > 0 else None
        self.contrast = NameContrast()
        self.projection = nn.Linear(width, TARGET_WIDTH)

    def _new_centering(self) -> Centering:
        head = self.config.head
        return Centering(
            head.num_prototypes, temperature=head.teacher_temperature, momentum=head.centre_momentum
        )

    def training_step(self, batch: Batch, step: Step) -> tuple[Tensor, Terms]:
        """See the module's docstring."""
        whole = vision_tokens(self.model, batch.pixels_B3HW)
        loss, terms = self.shared_loss(whole, batch, step)
        config = self.config
        has_ibot = config.ibot_weight > 0 and step.progress >= config.ibot_start
        has_dino = config.dino_weight > 0 and len(batch.locals_CB3hw) > 0
        if has_ibot or has_dino:
            teacher_tokens = self._teacher_tokens(whole, batch)
            if has_ibot:
                terms["ibot"], logged = self._ibot_term(teacher_tokens, batch, step)
                loss = loss + self._ibot_weight(step.progress) * terms["ibot"]
                terms |= logged
            if has_dino:
                terms["dino"] = self._dino_term(teacher_tokens, batch)
                loss = loss + config.dino_weight * terms["dino"]
        return loss, terms

    def _ibot_weight(self, progress: float) -> float:
        config = self.config
        first, last = config.head_alone_until, config.ibot_ramp_until
        is_ramp = first <= progress < last
        return config.ibot_weight * ((progress - first) / (last - first) if is_ramp else 1.0)

    @torch.no_grad()
    def _teacher_tokens(self, whole: VisionTokens, batch: Batch) -> VisionTokens:
        """The teacher's tokens of the whole image: the student's own, except with full EMA.

        No loss has a gradient through them.
        """
        if self.teacher_tower is None:
            return whole
        return vision_tokens(self.teacher_tower, batch.pixels_B3HW)

    def _ibot_term(
        self, teacher_tokens: VisionTokens, batch: Batch, step: Step
    ) -> tuple[Tensor, Terms]:
        """The loss; for the log its parts by visibility, and statistics of the targets."""
        teacher = self.teacher_head or self.head
        targets = patch_targets(teacher, self.centering, teacher_tokens.patches_BND)
        masked_BN = self.draw_masks(teacher_tokens, step)
        with torch.set_grad_enabled(step.progress >= self.config.head_alone_until):
            student = vision_tokens(self.model, batch.pixels_B3HW, masked_BN)
        return self.patch_loss(
            self.head, student.patches_BND, targets, masked_BN=masked_BN, is_logged=step.is_logged
        )

    def _dino_term(self, teacher_tokens: VisionTokens, batch: Batch) -> Tensor:
        assert self.global_centering is not None  # it is built wherever DINO has a weight
        teacher = self.teacher_head or self.head
        targets_BK = whole_targets(teacher, self.global_centering, teacher_tokens.cls1_BD)
        return self.crop_loss(self.head, batch, targets_BK)

    def after_step(self) -> None:
        """Bound the temperature and move the averages."""
        super().after_step()
        pairs = ((self.teacher_head, self.head), (self.teacher_tower, self.model.vision_model))
        for average, current in pairs:
            if average is not None:
                update_ema(average, current, self.config.head.ema_momentum)
