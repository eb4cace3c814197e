"""Counts what a training run keeps in memory from step to step: weights, averages, optimizer state.

Activations and gradients come and go with a step and are not counted here. Sizes are those of the
whole model: ranks that cut it among them hold their share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.methods.base import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes that stay allocated between steps.

    Attributes:
        parameters: What is trained or part of the model, with text tower and heads.
        ema: Moving averages, which are never trained.
        optimizer: Moments and the like, of the parameters that have had a gradient by now.
    """

    parameters: int
    ema: int
    optimizer: int

    @property
    def total(self) -> int:
        """Sum of the three."""
        return self.parameters + self.ema + self.optimizer


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Size of some tensors; what several of them share counts once."""
    distinct = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def _parameters(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def count_state(method: Method, optimizers: Sequence[torch.optim.Optimizer]) -> StateBytes:
    """Count a method and its optimizers; exact, also on the meta device.

    Optimizers make their state at the first step, and only for parameters with a gradient, so
    count after the last loss has joined in.
    """
    averages = _parameters(method.averages())
    averaged = {id(parameter) for parameter in averages}
    own = [parameter for parameter in method.parameters() if id(parameter) not in averaged]
    state = [
        value
        for optimizer in optimizers
        for values in optimizer.state.values()
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    return StateBytes(
        parameters=num_bytes(own), ema=num_bytes(averages), optimizer=num_bytes(state)
    )
