"""The interface of a training method, and what all methods share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, get_args

import torch
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.features import VisionTokens, vision_tokens
from training.data.batch import Batch, with_unit_pixels
from training.heads import HeadConfig, NameContrast, PrototypeHead
from training.losses.distillation import prototype_losses
from training.losses.ibot import Supervised, loss_by_visibility
from training.masking import random_masks
from training.methods.image_backbone import ImageBackboneConfig, image_backbone_term, title_term
from training.methods.terms import (
    MIN_TEMPERATURE,
    ContrastShare,
    NameContrastConfig,
    caption_terms,
    embed_captions,
    name_term,
)
from training.targets import Centering, TokenTargets, target_statistics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """Position of a training step, and its source of randomness.

    Attributes:
        progress: Completed share of the training, 0 to 1.
        generator: Source of random choices, on the CPU. Seeded by run and step alone, so it is the
            same on every rank.
        first_row: Index of this rank's first image in the global batch.
        global_rows: Images in the global batch.
        is_logged: Whether values that are only for the log are computed; the same on all ranks.
        contrast: This micro-batch's share of the contrast of captions; None if it has none, or if
            it is the only micro-batch of its step and contrasts its captions itself.
    """

    progress: float
    generator: torch.Generator
    first_row: int
    global_rows: int
    is_logged: bool = True
    contrast: ContrastShare | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult:
    """The loss to minimise and its detached parts by name.

    Both are this rank's share: the mean over the ranks is the value for the global batch.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedConfig:
    """Settings of the loss terms that all methods share.

    Attributes:
        contrast_weight: Of the average of both caption streams, 1 in the paper; 0 turns them off.
        names: The fine-grained term.
        image_backbone: The terms of the frozen image backbone; not part of TIPSv2.
        text_locked_until: Share of the training in which the text tower is not updated.
    """

    contrast_weight: float = 1.0
    names: NameContrastConfig = field(default_factory=NameContrastConfig)
    image_backbone: ImageBackboneConfig = field(default_factory=ImageBackboneConfig)
    text_locked_until: float = 0.0

    def __post_init__(self) -> None:
        """Check the range."""
        if self.contrast_weight < 0:
            raise ValueError("contrast_weight must not be below 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedConfig(SharedConfig):
    """What pretraining and distillation set alike: local crops, patches and their head.

    Attributes:
        dino_weight: Of the local crops against the whole image, the paper's alpha of 1. A batch
            without local crops has no such term.
        supervised: Patches of the patch loss: "all", or the "masked" ones.
        head: The prototype head; a student's has as many prototypes as its teacher's.
        mask_ratio: Share of the patches that are masked.
    """

    dino_weight: float = 1.0
    supervised: Supervised = "all"
    head: HeadConfig = field(default_factory=HeadConfig)
    mask_ratio: float

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        SharedConfig.__post_init__(self)
        check_choices(self, supervised=Supervised)
        if not 0 <= self.mask_ratio <= 1:
            raise ValueError(f"mask_ratio must lie in 0..1, not {self.mask_ratio}")
        if self.supervised == "masked" and self.mask_ratio == 0:
            raise ValueError('supervised="masked" needs a mask_ratio above 0')


class PatchTargets(Protocol):
    """A frozen network that gives a target for each patch."""

    def patch_targets(self, pixels_B3HW: Tensor) -> Tensor:
        """Targets [B, N, K], float32."""


class Method(nn.Module, ABC):
    """A model in training with its losses. Independent of optimizers and files.

    Attributes:
        config: The method's configuration.
        log_temperature: Logarithm of the temperature of the caption contrast, which is learnt. The
            model's own temperature is not trained; it has the value that the loss divides by.
        projection: From the model's width to the width of the image backbone's targets.
        image_backbone: The frozen image backbone. Not a submodule, so checkpoints do not contain
            it; set by the caller if its weight in the configuration is above 0.
    """

    config: SharedConfig
    model: Tipsv2Model
    contrast: NameContrast
    projection: nn.Linear
    image_backbone: PatchTargets | None = None

    def __init__(self, model: Tipsv2Model, config: SharedConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        start = model.temperature.detach().clamp(min=MIN_TEMPERATURE)
        self.log_temperature = nn.Parameter(start.log())
        model.temperature.requires_grad = False

    @abstractmethod
    def training_step(self, batch: Batch, step: Step) -> StepResult:
        """Compute the loss of one batch."""

    def forward(self, batch: Batch, step: Step) -> StepResult:
        """Compute the loss of one batch; DDP and FSDP2 hook in here."""
        return self.training_step(with_unit_pixels(batch), step)

    def draw_masks(self, tokens: VisionTokens, ratio: float, step: Step) -> Tensor:
        """Masks [B, N] of this rank's images; independent of the number of ranks."""
        batch_size, num_patches = tokens.patches_BND.shape[:2]
        rows = slice(step.first_row, step.first_row + batch_size)
        masked_BN = random_masks(step.global_rows, num_patches, ratio, step.generator, rows=rows)
        return masked_BN.to(tokens.patches_BND.device)

    def contrasts_captions(self) -> bool:
        """Whether captions of different images are compared."""
        return self.config.contrast_weight > 0

    def embed_captions(self, batch: Batch, step: Step) -> Tensor:
        """The rows of `training.methods.terms.embed_captions`."""
        locked = step.progress < self.config.text_locked_until
        batch = with_unit_pixels(batch)
        whole = vision_tokens(self.model, batch.pixels_B3HW)
        return embed_captions(self.model, whole, batch, locked=locked)

    def _caption_loss(
        self, features: VisionTokens, batch: Batch, step: Step, *, locked: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of both streams' terms, and the terms."""
        if step.contrast is not None:
            rows_TF = embed_captions(self.model, features, batch, locked=locked)
            return step.contrast.replay(rows_TF, self.log_temperature), dict(step.contrast.terms)
        temperature = self.log_temperature.exp()
        terms = caption_terms(self.model, features, batch, temperature=temperature, locked=locked)
        if not terms:
            return features.patches_BND.new_zeros((), dtype=torch.float32), terms
        return (terms["cls1"] + terms["cls2"]) / 2, terms

    def shared_loss(
        self, features: VisionTokens, batch: Batch, step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the shared terms, and each term by its name."""
        settings = self.config
        locked = step.progress < settings.text_locked_until
        terms: dict[str, Tensor] = {}
        loss = features.patches_BND.new_zeros((), dtype=torch.float32)
        if self.contrasts_captions():
            mean, terms = self._caption_loss(features, batch, step, locked=locked)
            loss = settings.contrast_weight * mean
        if settings.names.weight > 0:
            terms["names"] = name_term(
                self.model,
                features,
                batch,
                contrast=self.contrast,
                config=settings.names,
                locked=locked,
            )
            loss = loss + settings.names.weight * terms["names"]
        backbone = settings.image_backbone
        weights = {"image_backbone": backbone.weight, "titles": backbone.titles_weight}
        backbone_terms = self._image_backbone_terms(features, batch, step.progress)
        for name, term in backbone_terms.items():
            loss = loss + weights[name] * term
        return loss, terms | backbone_terms

    def _image_backbone_terms(
        self, features: VisionTokens, batch: Batch, progress: float
    ) -> dict[str, Tensor]:
        """Terms of unnamed drawings (backbone and titles) and of early scenes (backbone)."""
        config = self.config.image_backbone
        encoded: list[tuple[Tensor, Tensor]] = []
        terms: dict[str, Tensor] = {}
        if config.weight > 0 and progress < config.scenes_until:
            encoded.append((features.patches_BND, batch.pixels_B3HW))
        if batch.unnamed is not None and max(config.weight, config.titles_weight) > 0:
            drawings = batch.unnamed
            tokens = vision_tokens(self.model, drawings.pixels_E3hw)
            if config.weight > 0:
                encoded.append((tokens.patches_BND, drawings.pixels_E3hw))
            if config.titles_weight > 0:
                locked = progress < self.config.text_locked_until
                terms["titles"] = title_term(
                    self.model,
                    tokens,
                    drawings,
                    temperature=self.log_temperature.exp(),
                    locked=locked,
                )
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

    @torch.no_grad()
    def gauges(self) -> dict[str, Tensor]:
        """Values for the log that need no batch: the temperature, and the norm of each centre."""
        centres = {
            name.replace("centering", "centre_norm"): module.centre_K.norm()
            for name, module in self.named_modules()
            if isinstance(module, Centering)
        }
        return {"temperature": self.log_temperature.exp(), **centres}

    @torch.no_grad()
    def after_step(self) -> None:
        """Bound the temperature after an optimizer's step.

        A bound in the forward pass would have no gradient below it, so a temperature that a step
        had taken there would never return.
        """
        self.log_temperature.clamp_(min=math.log(MIN_TEMPERATURE))
        self.model.temperature.copy_(self.log_temperature.exp())


def check_choices(config: object, **choices: object) -> None:
    """Check that fields have one of the values of their Literal type.

    Raises:
        ValueError: A field has another value.
    """
    for name, literal in choices.items():
        if getattr(config, name) not in get_args(literal):
            raise ValueError(f"{name} must be one of {get_args(literal)}")


def model_width(model: Tipsv2Model) -> int:
    """Width D of the model's tokens, equal in both towers."""
    return int(model.vision_model.config.hidden_size)


def encode_crops(model: Tipsv2Model, locals_CB3hw: Tensor) -> Tensor:
    """CLS1 [C, B, D] of each local crop, in one pass over all crops.

    Which CLS token DINO compares is not published for TIPSv2; TIPS's diagram shows that of the alt
    texts.
    """
    tokens_ND = vision_tokens(model, locals_CB3hw.flatten(0, 1)).cls1_BD
    return tokens_ND.view(*locals_CB3hw.shape[:2], -1)


def patch_losses(
    head: PrototypeHead,
    patches_BND: Tensor,
    targets: TokenTargets,
    temperature: float,
    *,
    masked_BN: Tensor | None,
    is_logged: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses [B, N] of a student's patches against a teacher's assignments.

    Returns:
        The losses; for the log, statistics of the targets and the means by visibility.
    """
    loss_BN = prototype_losses(
        head.embed(patches_BND).flatten(0, 1), head.directions(), targets, temperature
    ).view(patches_BND.shape[:2])
    if not is_logged:
        return loss_BN, {}
    logged = target_statistics(targets, len(head.prototypes))
    return loss_BN, logged | ({} if masked_BN is None else loss_by_visibility(loss_BN, masked_BN))


def detached(tokens: VisionTokens) -> VisionTokens:
    """The same tokens without gradient."""
    return VisionTokens(
        cls1_BD=tokens.cls1_BD.detach(),
        cls2_BD=tokens.cls2_BD.detach(),
        patches_BND=tokens.patches_BND.detach(),
    )
