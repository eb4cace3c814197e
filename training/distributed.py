"""Data parallelism over processes started by torchrun: each rank trains on its own scenes.

Without torchrun there is one rank and nothing here does anything.
"""

import os

import torch
import torch.distributed as dist
from torch import nn


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


def wait_for_all() -> None:
    """Let every rank come to this line."""
    if dist.is_initialized():
        dist.barrier()


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Replace each gradient by its mean over the ranks, in one exchange."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start_ = 0
    for gradient in gradients:
        gradient.copy_(flat[start_ : start_ + gradient.numel()].view_as(gradient))
        start_ += gradient.numel()
