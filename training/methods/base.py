"""What the trainer asks of a training method, and what a step answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.features import VisionFeatures
from training.data.batch import Batch
from training.heads import NameContrast
from training.methods.terms import NameContrastConfig, caption_terms, name_term, trunk_term


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult:
    """The loss to minimise and its detached parts by name."""

    loss: Tensor
    metrics: dict[str, Tensor]


class SharedSettings(Protocol):
    """What every method's configuration says of the terms that methods share."""

    @property
    def names(self) -> NameContrastConfig:
        """The fine-grained term."""

    @property
    def trunk_weight(self) -> float:
        """Weight of the frozen image trunk's features; 0 leaves them out."""

    @property
    def text_locked_until(self) -> float:
        """Share of the training in which the text tower is left as it was warmed up."""


class Method(nn.Module, ABC):
    """A model in training together with its losses. Knows neither optimizer nor files."""

    model: Tipsv2Model
    contrast: NameContrast
    projection: nn.Linear

    @property
    @abstractmethod
    def shared_settings(self) -> SharedSettings:
        """The method's configuration, as far as methods share it."""

    @abstractmethod
    def training_step(
        self, batch: Batch, *, progress: float, generator: torch.Generator
    ) -> StepResult:
        """Compute the loss of one batch.

        Args:
            batch: The data.
            progress: Share of the training that is done, 0 to 1.
            generator: Source of the step's random choices.
        """

    def shared_loss(
        self, features: VisionFeatures, batch: Batch, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the terms that methods share, and each by its name."""
        settings = self.shared_settings
        locked = progress < settings.text_locked_until
        terms = caption_terms(self.model, features, batch, locked=locked)
        loss = (terms["cls1"] + terms["cls2"]) / 2
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
        if settings.trunk_weight > 0:
            terms["trunk"] = trunk_term(features, batch, self.projection)
            loss = loss + settings.trunk_weight * terms["trunk"]
        return loss, terms

    def after_step(self) -> None:
        """Update what follows the weights, such as moving averages."""


def model_width(model: Tipsv2Model) -> int:
    """Width D of a model's tokens, the same in both towers."""
    return int(model.vision_model.config.hidden_size)
