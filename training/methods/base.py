"""What the trainer asks of a training method, and what a step answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Tipsv2Model

from training.data.loader import SceneBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult:
    """The loss to minimise and its detached parts by name."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Method(nn.Module, ABC):
    """A model in training together with its losses. Knows neither optimizer nor files."""

    model: Tipsv2Model

    @abstractmethod
    def training_step(
        self, batch: SceneBatch, *, progress: float, generator: torch.Generator
    ) -> StepResult:
        """Compute the loss of one batch.

        Args:
            batch: The data.
            progress: Share of the training that is done, 0 to 1.
            generator: Source of the step's random choices.
        """

    def after_step(self) -> None:
        """Update what follows the weights, such as moving averages."""


def model_width(model: Tipsv2Model) -> int:
    """Width D of a model's tokens, the same in both towers."""
    return int(model.vision_model.config.hidden_size)
