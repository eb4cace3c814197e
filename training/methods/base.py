"""The interface of a training method, and what all methods share: the contrast of captions."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.features import VisionTokens, vision_tokens
from training.data.batch import Batch, with_unit_pixels
from training.methods.terms import MIN_TEMPERATURE, ContrastShare, caption_terms, embed_captions
from training.settings import STRICT
from training.targets import Centering


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


Terms = dict[str, Tensor]
"""Parts of a loss by name. They and the loss are this rank's share: the mean over the ranks is the
value for the global batch."""


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SharedConfig:
    """What every method has.

    Attributes:
        contrast_weight: Of the average of both caption streams, 1 in the paper; 0 turns them off.
    """

    contrast_weight: NonNegativeFloat = 1.0


class Method(nn.Module, ABC):
    """A model in training with its losses. Independent of optimizers and files.

    Attributes:
        config: The method's configuration.
        log_temperature: Logarithm of the temperature of the caption contrast, which is learnt. The
            model's own temperature is not trained; it has the value that the loss divides by.
    """

    config: SharedConfig
    model: Tipsv2Model

    def __init__(self, model: Tipsv2Model, config: SharedConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        start = model.temperature.detach().clamp(min=MIN_TEMPERATURE)
        self.log_temperature = nn.Parameter(start.log())
        model.temperature.requires_grad = False

    @abstractmethod
    def training_step(self, batch: Batch, step: Step) -> tuple[Tensor, Terms]:
        """Compute the loss of one batch, and its parts."""

    def forward(
        self, batch: Batch, step: Step, *, only_embeds: bool = False
    ) -> tuple[Tensor, Terms]:
        """Compute the loss of one batch and its detached parts; DDP and FSDP2 hook in here.

        With `only_embeds` the rows of `training.methods.terms.embed_captions` take its place.
        """
        batch = with_unit_pixels(batch)
        if only_embeds:
            tokens = vision_tokens(self.model, batch.pixels_B3HW)
            return embed_captions(self.model, tokens, batch), {}
        loss, terms = self.training_step(batch, step)
        return loss, {name: term.detach() for name, term in terms.items()}

    def contrasts_captions(self) -> bool:
        """Whether captions of different images are compared."""
        return self.config.contrast_weight > 0

    def caption_loss(
        self, features: VisionTokens, batch: Batch, step: Step
    ) -> tuple[Tensor, Terms]:
        """The weighted mean of both streams' terms, and the terms."""
        none = features.patches_BND.new_zeros((), dtype=torch.float32)
        if not self.contrasts_captions():
            return none, {}
        weight = self.config.contrast_weight
        if step.contrast is not None:
            rows_TF = embed_captions(self.model, features, batch)
            mean = step.contrast.replay(rows_TF, self.log_temperature)
            return weight * mean, dict(step.contrast.terms)
        terms = caption_terms(self.model, features, batch, self.log_temperature.exp())
        return (weight * (terms["cls1"] + terms["cls2"]) / 2 if terms else none), terms

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


def model_width(model: Tipsv2Model) -> int:
    """Width D of the model's tokens, equal in both towers."""
    return int(model.vision_model.config.hidden_size)
