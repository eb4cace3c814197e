"""Counts what a training run keeps in memory from step to step: weights, averages, optimizer state.

Activations and gradients come and go with a step and are not counted here, nor is a frozen teacher.
Sizes are those of the whole model: ranks that cut it among them hold their share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from training.cost import optimizer_bytes
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

    def __str__(self) -> str:
        """In words, in MB of a million bytes."""
        parts = (
            ("parameters", self.parameters),
            ("averages", self.ema),
            ("optimizer", self.optimizer),
            ("together", self.total),
        )
        return ", ".join(f"{name} {count / 1e6:.1f} MB" for name, count in parts)


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


def plan_state(method: Method, optimizers: Sequence[torch.optim.Optimizer]) -> StateBytes:
    """Count what will be kept once every parameter that is trained has had a gradient.

    Optimizers' step counters, four bytes a parameter tensor, are not counted.
    """
    now = count_state(method, ())
    return replace(now, optimizer=optimizer_bytes(optimizers))
