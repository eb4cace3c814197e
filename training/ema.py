"""Exponential moving averages of modules; under head-only EMA that is the projector head alone."""

import torch
from torch import nn


@torch.no_grad()
def update_ema(average: nn.Module, current: nn.Module, momentum: float) -> None:
    """Move `average` towards `current`: average = momentum * average + (1 - momentum) * current."""
    pairs = zip(average.parameters(), current.parameters(), strict=True)
    averages, currents = zip(*[(a, c.detach()) for a, c in pairs], strict=True)
    torch._foreach_lerp_(list(averages), list(currents), 1 - momentum)
