"""Exponential moving averages of modules, and how much of a method is averaged."""

import copy
from typing import Literal, TypeVar

import torch
from torch import nn

EmaScope = Literal["head", "full", "none"]

Part = TypeVar("Part", bound=nn.Module)


def averaged_copy(module: Part) -> Part:
    """Copy a module without gradients: the initial value of its moving average."""
    return copy.deepcopy(module).requires_grad_(requires_grad=False)


@torch.no_grad()
def update_ema(average: nn.Module, current: nn.Module, momentum: float) -> None:
    """Move `average` towards `current`: average = momentum * average + (1 - momentum) * current."""
    pairs = zip(average.parameters(), current.parameters(), strict=True)
    averages, currents = zip(*[(a, c.detach()) for a, c in pairs], strict=True)
    torch._foreach_lerp_(list(averages), list(currents), 1 - momentum)
