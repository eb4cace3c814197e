"""Distillation: a frozen teacher, no masking, every patch supervised, a student from scratch.

In each step the whole image goes through student and teacher once. With a mask, as in ablations,
the student encodes the image a second time. Local crops go through the student alone, and predict
the teacher's assignment of the whole image.

Shapes: B batch, N patches, C local crops, D the student's width, K prototypes.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.features import VisionTokens, vision_tokens
from training.data.batch import Batch
from training.heads import HeadConfig, NameContrast, PrototypeHead
from training.losses.distillation import feature_loss
from training.methods.base import Step, Terms, model_width
from training.methods.captioned import CaptionedConfig, CaptionedMethod, encode_crops
from training.methods.teacher import FrozenTeacher, TeacherDtype
from training.methods.terms import TARGET_WIDTH
from training.settings import STRICT, Share

PatchLoss = Literal["prototypes", "features"]
TextStart = Literal["fresh", "teacher"]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DistillConfig(CaptionedConfig):
    """Weights and settings of distillation; the defaults are the paper's where it gives any.

    Attributes:
        patch_weight: Of the patch distillation, as beta in pretraining.
        patch_from: Share of the training after which the teacher is used; the first images of a
            curriculum are too small for it.
        patch_until: Share of the training after which the teacher is not used, for students that
            become better than their teacher.
        mask_ratio: 0 in the paper; above it, the student's patches are those of a masked view.
        patch_loss: "prototypes" compares assignments, works for any two widths, and needs the
            teacher's head. "features" compares the student's tokens by cosine with the teacher's,
            through a linear projector if the widths differ, and needs no head. That the paper's
            students learn prototypes is inferred; its teacher's head is not published.
        text_start: Start the text tower "fresh" or as a copy of the "teacher"'s; the paper found
            little difference.
        teacher_dtype: Of the teacher's encoder; "bfloat16" halves its memory.
    """

    patch_weight: NonNegativeFloat = 2.0
    patch_from: float = 0.0
    patch_until: float = 1.0
    mask_ratio: Share = 0.0
    patch_loss: PatchLoss = "prototypes"
    text_start: TextStart = "fresh"
    teacher_dtype: TeacherDtype = "float32"


class Distill(CaptionedMethod):
    """A student with a new head or a projector, and its frozen teacher.

    The teacher is not a submodule, so checkpoints contain only the student.

    Raises:
        ValueError: The teacher does not fit the configuration.
    """

    config: DistillConfig

    def __init__(self, model: Tipsv2Model, config: DistillConfig, teacher: FrozenTeacher) -> None:
        super().__init__(model, config)
        width = model_width(model)
        self.head: PrototypeHead | None = None
        self.projector: nn.Module | None = None
        self.global_projector: nn.Module | None = None
        if config.patch_loss == "prototypes":
            _check_prototypes(teacher, config.head)
            self.head = config.head.build(width)
        else:
            self.projector = _projector(width, teacher.width)
            self.global_projector = _projector(width, teacher.width)
        self.contrast = NameContrast()
        self.projection = nn.Linear(width, TARGET_WIDTH)
        if config.text_start == "teacher":
            _copy_text_tower(model, teacher)
        self._teacher = replace(teacher, text_model=None)

    def training_step(self, batch: Batch, step: Step) -> tuple[Tensor, Terms]:
        """See the module's docstring."""
        whole = vision_tokens(self.model, batch.pixels_B3HW)
        loss, terms = self.shared_loss(whole, batch, step)
        config = self.config
        uses_teacher = config.patch_from <= step.progress < config.patch_until
        has_patch = config.patch_weight > 0
        has_dino = config.dino_weight > 0 and len(batch.locals_CB3hw) > 0
        if uses_teacher and (has_patch or has_dino):
            teacher_tokens = self._teacher.encode(batch.pixels_B3HW)
            if has_patch:
                terms["patch"], logged = self._patch_term(whole, teacher_tokens, batch, step)
                loss = loss + config.patch_weight * terms["patch"]
                terms |= logged
            if has_dino:
                terms["dino"] = self._dino_term(teacher_tokens, batch)
                loss = loss + config.dino_weight * terms["dino"]
        return loss, terms

    def _patch_term(
        self, whole: VisionTokens, teacher_tokens: VisionTokens, batch: Batch, step: Step
    ) -> tuple[Tensor, Terms]:
        """The loss; for the log its parts by visibility, and statistics of the targets."""
        config = self.config
        patches_BND, masked_BN = whole.patches_BND, None
        if config.mask_ratio > 0:
            masked_BN = self.draw_masks(whole, step)
            patches_BND = vision_tokens(self.model, batch.pixels_B3HW, masked_BN).patches_BND
        theirs_BND = teacher_tokens.patches_BND
        if self.projector is not None:
            counted_BN = masked_BN if config.supervised == "masked" else None
            return feature_loss(self.projector(patches_BND), theirs_BND, counted_BN), {}
        assert self.head is not None  # there is either a head or a projector
        targets = self._teacher.assign_patches(theirs_BND)
        return self.patch_loss(
            self.head, patches_BND, targets, masked_BN=masked_BN, is_logged=step.is_logged
        )

    def _dino_term(self, teacher_tokens: VisionTokens, batch: Batch) -> Tensor:
        teacher_BD = teacher_tokens.cls1_BD
        if self.global_projector is not None:
            crops_CBD = encode_crops(self.model, batch.locals_CB3hw)
            projected_BCD = self.global_projector(crops_CBD).transpose(0, 1)
            return feature_loss(projected_BCD, teacher_BD[:, None].expand_as(projected_BCD))
        assert self.head is not None
        return self.crop_loss(self.head, batch, self._teacher.assign_global(teacher_BD))


def _projector(width: int, teacher_width: int) -> nn.Module:
    """A linear map from the student's width to the teacher's; the identity if they are equal."""
    return nn.Identity() if width == teacher_width else nn.Linear(width, teacher_width)


def _check_prototypes(teacher: FrozenTeacher, head: HeadConfig) -> None:
    """Check that the teacher has the expected number of prototypes."""
    if teacher.head is None:
        raise ValueError(
            "the teacher has no prototype head (released models have none): set "
            'method.patch_loss="features", or give the folder of a run that has heads.pt'
        )
    num_prototypes = len(teacher.head.prototypes)
    if num_prototypes != head.num_prototypes:
        raise ValueError(
            f"the teacher has {num_prototypes} prototypes: set method.head.num_prototypes to that, "
            f"not to {head.num_prototypes}"
        )


@torch.no_grad()
def _copy_text_tower(student: Tipsv2Model, teacher: FrozenTeacher) -> None:
    """Copy the teacher's text tower to the student, in the student's dtype."""
    own = student.text_model.state_dict()
    theirs = {} if teacher.text_model is None else teacher.text_model.state_dict()
    differing = [
        name for name in own if name not in theirs or own[name].shape != theirs[name].shape
    ]
    if differing or len(own) != len(theirs):
        raise ValueError(
            "text_start='teacher' needs text towers of equal shape: give the student the teacher's "
            "width, text layers and vocabulary, or set text_start='fresh'"
        )
    student.text_model.load_state_dict(theirs)
