"""Counts the operations and the kept bytes of a piece of a training step, without running it.

The real modules run on tensors that have a shape and a dtype and no memory, under bfloat16 autocast
as in training, with torch's own counter of operations; what autograd keeps for the backward pass is
added up. It counts matrix products, convolutions and attention, a multiply-add as two; the rest is
bound by memory and not by arithmetic, and is part of what a stated utilisation stands for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What one image costs in one pass, or the sum over passes.

    Attributes:
        forward_flops: Operations of the forward pass.
        backward_flops: Of the backward pass, recomputation included where blocks are checkpointed.
        saved_bytes: What is kept from forward to backward, without the parameters.
    """

    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0

    @property
    def flops(self) -> int:
        """Operations of both passes."""
        return self.forward_flops + self.backward_flops

    def __add__(self, other: "Count") -> "Count":
        return Count(
            forward_flops=self.forward_flops + other.forward_flops,
            backward_flops=self.backward_flops + other.backward_flops,
            saved_bytes=self.saved_bytes + other.saved_bytes,
        )

    def times(self, factor: int) -> "Count":
        """Return the cost of `factor` of the same."""
        return Count(
            forward_flops=factor * self.forward_flops,
            backward_flops=factor * self.backward_flops,
            saved_bytes=factor * self.saved_bytes,
        )


def _flash(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _flash_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


_aten = torch.ops.aten
# torch counts the GPU's fused attention and leaves out the processor's, which has the same shapes.
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}


class _Kept:
    """Adds up the storages that autograd keeps, each once, without the module's own."""

    def __init__(self, module: nn.Module) -> None:
        state = (*module.parameters(), *module.buffers())
        self._seen = {tensor.untyped_storage()._cdata for tensor in state}
        self._alive: list[Tensor] = []
        self.num_bytes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)  # or its number could be given to another storage
            self.num_bytes += storage.nbytes()
        return tensor


def _count_batch(
    module: Module, compute: Callable[[Module, int], Tensor], batch: int, *, trains: bool
) -> Count:
    kept = _Kept(module)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor)
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        with torch.autocast("cpu", dtype=torch.bfloat16), hooks, torch.set_grad_enabled(trains):
            output = compute(module, batch)
        forward = counter.get_total_flops()
        if trains:
            output.float().sum().backward()
    module.zero_grad(set_to_none=True)
    total = counter.get_total_flops()
    return Count(forward_flops=forward, backward_flops=total - forward, saved_bytes=kept.num_bytes)


def count_per_image(
    build: Callable[[], Module], compute: Callable[[Module, int], Tensor], *, trains: bool = True
) -> Count:
    """Count what one more image in the batch costs.

    Args:
        build: Makes the module that computes; it is called for the meta device.
        compute: Takes the module and a number of images; gives what is differentiated.
        trains: Whether a backward pass follows; without one nothing is kept.
    """
    with torch.device("meta"):
        module = build()
    with FakeTensorMode():
        apply: Callable[..., nn.Module] = module._apply
        apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        one = _count_batch(module, compute, 1, trains=trains)
        two = _count_batch(module, compute, 2, trains=trains)
    return two + one.times(-1)


def extend_in_depth(count_at: Callable[[int], Count], num_layers: int) -> Count:
    """Count a tower from two shallow ones: all its blocks are alike, so the cost is linear."""
    two, three = count_at(2), count_at(3)
    return two + (three + two.times(-1)).times(num_layers - 2)
