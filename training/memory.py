"""Counts the memory that a run keeps between steps: weights, averages, optimizer state.

Activations, gradients and a frozen teacher are not counted. Sizes are those of the whole model;
with FSDP2 each rank holds its share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from training.methods.base import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes that stay allocated between steps.

    Attributes:
        parameters: The model with its text tower, and heads.
        ema: Moving averages.
        optimizer: Optimizer state of the parameters that have had a gradient.
    """

    parameters: int
    ema: int
    optimizer: int

    @property
    def total(self) -> int:
        """Sum of the three."""
        return self.parameters + self.ema + self.optimizer

    def __str__(self) -> str:
        """The sizes in MB (1e6 bytes)."""
        parts = (
            ("parameters", self.parameters),
            ("averages", self.ema),
            ("optimizer", self.optimizer),
            ("total", self.total),
        )
        return ", ".join(f"{name} {count / 1e6:.1f} MB" for name, count in parts)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Size of some tensors; a tensor that occurs twice counts once."""
    distinct = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def _parameters(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def count_state(method: Method, optimizers: Sequence[torch.optim.Optimizer]) -> StateBytes:
    """Count a method and its optimizers; exact, also on the meta device.

    Optimizers create their state at the first step of a parameter with a gradient, so count after
    all losses have started.
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
    """Predict the memory once every trained parameter has had a gradient.

    Step counters of optimizers, four bytes per parameter tensor, are not counted.
    """
    moments = 0
    for optimizer in optimizers:
        trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        per_parameter = 1 if isinstance(optimizer, torch.optim.Muon) else 2  # AdamW has two
        moments += per_parameter * num_bytes(trained)
    return replace(count_state(method, ()), optimizer=moments)
