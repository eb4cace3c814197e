"""Data parallelism over processes started by torchrun: each rank trains on its own scenes.

Gradients are averaged; contrast stays within a rank's own batch. Without torchrun there is one rank
and nothing here does anything.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start() -> tuple[int, int]:
    """Join the process group that torchrun describes; returns (rank, number of ranks)."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), ranks


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Let rank 0 through a block before the others, which then find the files that it left."""
    if dist.is_initialized() and dist.get_rank() != 0:
        dist.barrier()
    yield
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.barrier()


@torch.no_grad()
def mean_over_ranks(values: Tensor) -> Tensor:
    """Average a tensor over the ranks; the argument stays as it is."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Replace each gradient by its mean over the ranks.

    A rank without a gradient for a parameter, because its batch had nothing to say on it, counts
    as zero; a parameter without a gradient on any rank keeps none, so that optimizers skip it.
    """
    if not dist.is_initialized():
        return
    parameters = [p for p in module.parameters() if p.requires_grad]
    has_gradient = torch.tensor([float(p.grad is not None) for p in parameters])
    dist.all_reduce(has_gradient)
    shared = [p for p, count in zip(parameters, has_gradient, strict=True) if count > 0]
    if not shared:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in shared]
    flat = mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    for parameter, mean in zip(shared, flat.split([p.numel() for p in shared]), strict=True):
        parameter.grad = mean.view_as(parameter).clone()
