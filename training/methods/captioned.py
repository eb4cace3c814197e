"""What pretraining and distillation share: captions, names, patches, crops, an image backbone.

Shapes: G images of the global batch, B of one rank, N patches.
"""

from collections.abc import Sequence
from dataclasses import field
from typing import Protocol

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.features import VisionTokens, vision_tokens
from training.data.batch import Batch
from training.heads import HeadConfig, NameContrast, PrototypeHead
from training.losses.distillation import (
    Supervised,
    dino_loss,
    ibot_loss,
    loss_by_visibility,
    prototype_losses,
)
from training.methods.base import Method, SharedConfig, Step, Terms
from training.methods.terms import image_backbone_term, name_term, title_term
from training.settings import STRICT, Share
from training.targets import TokenTargets, target_statistics


def random_masks(
    batch: int,
    num_patches: int,
    ratio: float,
    generator: torch.Generator,
    *,
    rows: slice | None = None,
) -> Tensor:
    """Mask the same number of patches of each image, uniformly at random.

    Args:
        batch: G.
        num_patches: N.
        ratio: Share to mask, 0 to 1.
        generator: Source of randomness, on the CPU. It advances by the whole batch, so that it
            stays equal on ranks that take different rows of one batch.
        rows: Images whose masks are returned; None for all.

    Returns:
        bool [B, N].

    Raises:
        ValueError: The ratio is outside 0..1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"the mask ratio must lie in 0..1, not {ratio}")
    noise_GN = torch.rand(batch, num_patches, generator=generator)
    order_BN = (noise_GN if rows is None else noise_GN[rows]).argsort(dim=1)
    return order_BN < round(ratio * num_patches)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ImageBackboneConfig:
    """Settings of the terms from a frozen image backbone and from titles of drawings.

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


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CaptionedConfig(SharedConfig):
    """What pretraining and distillation set alike.

    Attributes:
        names_weight: Of the contrast of patches with names; not part of TIPSv2.
        image_backbone: The terms of the frozen image backbone; not part of TIPSv2.
        dino_weight: Of the local crops against the whole image, the paper's alpha of 1. A batch
            without local crops has no such term.
        supervised: Patches of the patch loss: "all", or the "masked" ones.
        head: The prototype head; a student's has as many prototypes as its teacher's.
        mask_ratio: Share of the patches that are masked.
    """

    names_weight: NonNegativeFloat = 0.0
    image_backbone: ImageBackboneConfig = field(default_factory=ImageBackboneConfig)
    dino_weight: NonNegativeFloat = 1.0
    supervised: Supervised = "all"
    head: HeadConfig = field(default_factory=HeadConfig)
    mask_ratio: Share

    def __post_init__(self) -> None:
        """Check the combination."""
        if self.supervised == "masked" and self.mask_ratio == 0:
            raise ValueError('supervised="masked" needs a mask_ratio above 0')


class PatchTargets(Protocol):
    """A frozen network that gives a target for each patch."""

    def patch_targets(self, pixels_B3HW: Tensor) -> Tensor:
        """Targets [B, N, K], float32."""


class CaptionedMethod(Method):
    """A method that learns captions, names and patches.

    Attributes:
        contrast: Learnt scalars of the contrast of patches with names.
        projection: From the model's width to the width of the image backbone's targets.
        image_backbone: The frozen image backbone. Not a submodule, so checkpoints do not contain
            it; set by the caller if its weight in the configuration is above 0.
    """

    config: CaptionedConfig
    contrast: NameContrast
    projection: nn.Linear
    image_backbone: PatchTargets | None = None

    def draw_masks(self, tokens: VisionTokens, step: Step) -> Tensor:
        """Masks [B, N] of this rank's images; independent of the number of ranks."""
        batch_size, num_patches = tokens.patches_BND.shape[:2]
        rows = slice(step.first_row, step.first_row + batch_size)
        ratio = self.config.mask_ratio
        masked_BN = random_masks(step.global_rows, num_patches, ratio, step.generator, rows=rows)
        return masked_BN.to(tokens.patches_BND.device)

    def shared_loss(self, features: VisionTokens, batch: Batch, step: Step) -> tuple[Tensor, Terms]:
        """Weighted sum of captions, names and extra networks, and each term by its name."""
        loss, terms = self.caption_loss(features, batch, step)
        config = self.config
        if config.names_weight > 0:
            terms["names"] = name_term(self.model, features, batch, self.contrast)
            loss = loss + config.names_weight * terms["names"]
        backbone = config.image_backbone
        weights = {"image_backbone": backbone.weight, "titles": backbone.titles_weight}
        extra = self._image_backbone_terms(features, batch, step.progress)
        for name, term in extra.items():
            loss = loss + weights[name] * term
        return loss, terms | extra

    def _image_backbone_terms(self, features: VisionTokens, batch: Batch, progress: float) -> Terms:
        """Terms of unnamed drawings (backbone and titles) and of early scenes (backbone)."""
        config, drawings = self.config.image_backbone, batch.unnamed
        encoded: list[tuple[Tensor, Tensor]] = []
        terms: Terms = {}
        if config.weight > 0 and progress < config.scenes_until:
            encoded.append((features.patches_BND, batch.pixels_B3HW))
        if drawings is not None and max(config.weight, config.titles_weight) > 0:
            tokens = vision_tokens(self.model, drawings.pixels_E3hw)
            if config.weight > 0:
                encoded.append((tokens.patches_BND, drawings.pixels_E3hw))
            if config.titles_weight > 0:
                temperature = self.log_temperature.exp()
                terms["titles"] = title_term(self.model, tokens, drawings, temperature)
        if encoded:
            terms["image_backbone"] = self._image_backbone_term(encoded)
        return terms

    def _image_backbone_term(self, encoded: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The term over several sets of patches and images; every image has the same weight."""
        backbone = self.image_backbone
        if backbone is None:
            raise ValueError("image_backbone.weight is above 0, but no image backbone is loaded")
        total = sum(len(pixels) for _, pixels in encoded)
        parts = [
            image_backbone_term(patches_BND, backbone.patch_targets(pixels_B3HW), self.projection)
            * (len(pixels_B3HW) / total)
            for patches_BND, pixels_B3HW in encoded
        ]
        return torch.stack(parts).sum()

    def patch_loss(
        self,
        head: PrototypeHead,
        patches_BND: Tensor,
        targets: TokenTargets,
        *,
        masked_BN: Tensor | None,
        is_logged: bool,
    ) -> tuple[Tensor, Terms]:
        """Mean loss of a student's patches against a teacher's assignments.

        Args:
            head: The student's.
            patches_BND: The student's, of the masked view if there is a mask.
            targets: The teacher's, of the whole view.
            masked_BN: bool; the masked patches. None without a mask: all patches count.
            is_logged: Whether values for the log are computed.

        Returns:
            A scalar; for the log, statistics of the targets and the means by visibility.
        """
        config = self.config
        loss_BN = prototype_losses(
            head.embed(patches_BND).flatten(0, 1),
            head.directions(),
            targets,
            config.head.student_temperature,
        ).view(patches_BND.shape[:2])
        logged = target_statistics(targets, len(head.prototypes)) if is_logged else {}
        if masked_BN is None:
            return loss_BN.mean(), logged
        if is_logged:
            logged |= loss_by_visibility(loss_BN, masked_BN)
        return ibot_loss(loss_BN, masked_BN, config.supervised), logged

    def crop_loss(self, head: PrototypeHead, batch: Batch, targets_BK: Tensor) -> Tensor:
        """Loss of local crops against the teacher's assignments of the whole images."""
        crops_CBD = encode_crops(self.model, batch.locals_CB3hw)
        return dino_loss(head(crops_CBD) / self.config.head.student_temperature, targets_BK)


def encode_crops(model: Tipsv2Model, locals_CB3hw: Tensor) -> Tensor:
    """CLS1 [C, B, D] of each local crop, in one pass over all crops.

    Which CLS token DINO compares is not published for TIPSv2; TIPS's diagram shows that of the alt
    texts.
    """
    tokens_ND = vision_tokens(model, locals_CB3hw.flatten(0, 1)).cls1_BD
    return tokens_ND.view(*locals_CB3hw.shape[:2], -1)
