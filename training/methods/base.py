"""What the trainer asks of a training method, and what a step answers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.features import VisionTokens, vision_features, vision_tokens
from training.data.batch import Batch
from training.heads import NameContrast
from training.masking import random_masks
from training.methods.image_backbone import TrunkConfig, title_term, trunk_term
from training.methods.terms import NameContrastConfig, caption_terms, name_term

GlobalToken = Literal["cls1", "cls2"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """Where a training step stands, and its random choices.

    Attributes:
        progress: Share of the training that is done, 0 to 1.
        generator: Source of random choices, on the CPU; seeded by run and step alone, so it says
            the same on every rank.
        first_row: Which image of the global batch this rank's first one is.
        global_rows: How many images the global batch has.
    """

    progress: float
    generator: torch.Generator
    first_row: int
    global_rows: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult:
    """The loss to minimise and its detached parts by name.

    Both are this rank's part of the global batch's: their means over the ranks are the whole.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class SharedSettings(Protocol):
    """What every method's configuration says of the terms that methods share."""

    @property
    def contrast_weight(self) -> float:
        """Weight of the two caption streams' average; 0 leaves them out."""

    @property
    def names(self) -> NameContrastConfig:
        """The fine-grained term."""

    @property
    def trunk(self) -> TrunkConfig:
        """The frozen image trunk's terms."""

    @property
    def min_temperature(self) -> float:
        """What the learnt temperature of the captions' contrast is not let below."""

    @property
    def text_locked_until(self) -> float:
        """Share of the training in which the text tower is left as it was warmed up."""


class PatchTargets(Protocol):
    """A frozen network that says what it sees in each patch."""

    def look(self, pixels_B3HW: Tensor) -> Tensor:
        """Targets [B, N, K], float32."""


class Method(nn.Module, ABC):
    """A model in training together with its losses. Knows neither optimizer nor files.

    Attributes:
        projection: From the model's width to the trunk's.
        trunk: The frozen image trunk, which is no module of the method's, so checkpoints do not
            hold it. Whoever builds a method whose configuration weighs it sets it.
    """

    model: Tipsv2Model
    contrast: NameContrast
    projection: nn.Linear
    trunk: PatchTargets | None = None

    @property
    @abstractmethod
    def shared_settings(self) -> SharedSettings:
        """The method's configuration, as far as methods share it."""

    @abstractmethod
    def training_step(self, batch: Batch, step: Step) -> StepResult:
        """Compute the loss of one batch."""

    def forward(self, batch: Batch, step: Step) -> StepResult:
        """Compute the loss of one batch; what wraps modules for several ranks hooks in here."""
        return self.training_step(batch, step)

    def encode(self, pixels_B3HW: Tensor) -> VisionTokens:
        """Encode whole images, with the value path only if a term compares it."""
        names = self.shared_settings.names
        if names.weight > 0 and names.features == "values":
            return vision_features(self.model, pixels_B3HW)
        return vision_tokens(self.model, pixels_B3HW)

    def draw_masks(self, tokens: VisionTokens, ratio: float, step: Step) -> Tensor:
        """Masks [B, N] of this rank's images, the same as one rank would draw for them."""
        batch_size, num_patches = tokens.patches_BND.shape[:2]
        rows = slice(step.first_row, step.first_row + batch_size)
        masked_BN = random_masks(step.global_rows, num_patches, ratio, step.generator, rows=rows)
        return masked_BN.to(tokens.patches_BND.device)

    def shared_loss(
        self, features: VisionTokens, batch: Batch, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the terms that methods share, and each by its name."""
        settings = self.shared_settings
        locked = progress < settings.text_locked_until
        terms: dict[str, Tensor] = {}
        loss = features.patches_BND.new_zeros((), dtype=torch.float32)
        if settings.contrast_weight > 0:
            terms = caption_terms(
                self.model,
                features,
                batch,
                locked=locked,
                min_temperature=settings.min_temperature,
            )
            if terms:
                loss = settings.contrast_weight * (terms["cls1"] + terms["cls2"]) / 2
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
        beside = self._trunk_terms(features, batch, progress)
        weights = {"trunk": settings.trunk.weight, "titles": settings.trunk.titles_weight}
        for name, term in beside.items():
            loss = loss + weights[name] * term
        return loss, terms | beside

    def _trunk_terms(
        self, features: VisionTokens, batch: Batch, progress: float
    ) -> dict[str, Tensor]:
        """What trunk and titles say of unnamed drawings, and the trunk of close-ups."""
        config = self.shared_settings.trunk
        seen: list[tuple[Tensor, Tensor]] = []
        terms: dict[str, Tensor] = {}
        if config.weight > 0 and progress < config.scenes_until:
            seen.append((features.patches_BND, batch.pixels_B3HW))
        if batch.unnamed is not None and max(config.weight, config.titles_weight) > 0:
            drawings = batch.unnamed
            tokens = vision_tokens(self.model, drawings.pixels_E3hw)
            if config.weight > 0:
                seen.append((tokens.patches_BND, drawings.pixels_E3hw))
            if config.titles_weight > 0:
                locked = progress < self.shared_settings.text_locked_until
                terms["titles"] = title_term(
                    self.model,
                    tokens,
                    drawings,
                    locked=locked,
                    min_temperature=self.shared_settings.min_temperature,
                )
        if seen:
            terms["trunk"] = self._trunk_term(seen)
        return terms

    def _trunk_term(self, seen: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The trunk's term of several sets of patches and images, each image counted once."""
        if self.trunk is None:
            raise ValueError("trunk.weight is above 0, and this method was built without a trunk")
        total = sum(len(pixels) for _, pixels in seen)
        parts = [
            trunk_term(patches_BND, self.trunk.look(pixels_B3HW), self.projection)
            * (len(pixels_B3HW) / total)
            for patches_BND, pixels_B3HW in seen
        ]
        return torch.stack(parts).sum()

    def averages(self) -> Sequence[nn.Module]:
        """Moving averages among this method's modules; they take memory and no gradient."""
        return ()

    def after_step(self) -> None:
        """Update what follows the weights, such as moving averages."""


def check_choices(config: object, **choices: object) -> None:
    """Check that fields hold one of the values of their Literal.

    Raises:
        ValueError: One does not.
    """
    for name, literal in choices.items():
        if getattr(config, name) not in get_args(literal):
            raise ValueError(f"{name} must be one of {get_args(literal)}")


def model_width(model: Tipsv2Model) -> int:
    """Width D of a model's tokens, the same in both towers."""
    return int(model.vision_model.config.hidden_size)


def global_token(tokens: VisionTokens, which: GlobalToken) -> Tensor:
    """The CLS token [B, D] of that name."""
    return tokens.cls1_BD if which == "cls1" else tokens.cls2_BD


def encode_crops(model: Tipsv2Model, locals_CB3hw: Tensor, which: GlobalToken) -> Tensor:
    """A global token [C, B, D] of each local crop, in one pass over all of them."""
    tokens_ND = global_token(vision_tokens(model, locals_CB3hw.flatten(0, 1)), which)
    return tokens_ND.view(*locals_CB3hw.shape[:2], -1)


def detached(tokens: VisionTokens) -> VisionTokens:
    """The same tokens for a teacher to look at: no gradient flows back."""
    return VisionTokens(
        cls1_BD=tokens.cls1_BD.detach(),
        cls2_BD=tokens.cls2_BD.detach(),
        patches_BND=tokens.patches_BND.detach(),
    )
