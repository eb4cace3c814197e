"""Adafactor: second moments of a matrix kept as one row and one column (arXiv:1804.04235).

torch's and transformers' Adafactor cannot update parameters that FSDP2 cuts over the ranks: one
squares norms in place that are still spread over the ranks, the other adds ordinary tensors to cut
ones (torch 2.13, transformers 5.24). This one does, and has the settings of Scaling Vision
Transformers (arXiv:2106.04560, section 3.4), the last published ones for ViTs: momentum 0.9, no
scaling by the parameter's size, decay of the second moments capped at 0.999.

Shapes: R C the last two axes of a parameter; whatever stands before them is a stack of matrices.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

_TINY = 1e-30


class Adafactor(torch.optim.Optimizer):
    """Adafactor with momentum in float32.

    Args:
        params: Parameters, or groups of them.
        lr: Size of a step, before clipping by `max_rms`.
        momentum: Of the clipped updates.
        max_decay: The second moments' decay is 1 - step ** -0.8, but at most this.
        max_rms: Root mean square above which an update is scaled down to it.
        weight_decay: Decoupled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        momentum: float = 0.9,
        max_decay: float = 0.999,
        max_rms: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "max_decay": max_decay,
            "max_rms": max_rms,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "Adafactor takes no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = cast("Tensor", parameter.grad), self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(gradient)
        state["step"] += 1
        decay = min(group["max_decay"], 1 - float(state["step"]) ** -0.8)
        update = gradient * _inverse_root(gradient, state, decay)
        rms = update.square().mean().sqrt()
        update = _cut_like(update / (rms / group["max_rms"]).clamp(min=1.0), parameter)
        state["momentum"].lerp_(update, 1 - group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(state["momentum"], alpha=-group["lr"])


def _cut_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Spread a value over the ranks as its parameter is; nothing to do for ordinary tensors."""
    if isinstance(value, DTensor) and isinstance(parameter, DTensor):
        return value.redistribute(placements=parameter.placements)
    return value


def _inverse_root(gradient: Tensor, state: dict[str, Any], decay: float) -> Tensor:
    """Move the second moments and return 1 / their root, of the gradient's shape.

    The moments are replaced, not changed in place: a mean along a cut axis is cut otherwise than
    what it is added to.
    """
    squares = gradient.square() + _TINY
    if gradient.ndim < 2:
        state["variance"] = _moved(state.get("variance"), squares, decay)
        return cast("Tensor", state["variance"].rsqrt())
    state["rows_R1"] = _moved(state.get("rows_R1"), squares.mean(-1, keepdim=True), decay)
    state["columns_1C"] = _moved(state.get("columns_1C"), squares.mean(-2, keepdim=True), decay)
    mean_11 = state["rows_R1"].mean(-2, keepdim=True)
    return cast("Tensor", (state["rows_R1"] / mean_11).rsqrt() * state["columns_1C"].rsqrt())


def _moved(average: Tensor | None, values: Tensor, decay: float) -> Tensor:
    if isinstance(values, DTensor):
        whole = [Replicate() if place.is_partial() else place for place in values.placements]
        values = values.redistribute(placements=whole)
    return values * (1 - decay) if average is None else average * decay + values * (1 - decay)
