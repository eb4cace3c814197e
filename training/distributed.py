"""Data parallelism over processes started by torchrun: each rank trains on its own images.

Gradients are averaged over the ranks, so a rank's loss is its share of the global loss times the
number of ranks: the mean over the ranks is the global loss. Without torchrun there is one rank, and
the functions here do nothing.

Shapes: R rows of one rank, G of all ranks, K any vector.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather


def start() -> tuple[int, int]:
    """Join the process group that torchrun describes; returns (rank, number of ranks)."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return 0, 1
    if not dist.is_initialized():
        # Counts are exchanged on the CPU, gradients on the model's device.
        has_gpu = torch.cuda.is_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo")
    return dist.get_rank(), ranks


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def num_ranks() -> int:
    """The number of ranks; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rank() -> int:
    """The number of this process; 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only one."""
    return own_rank() == 0


def wait_for_all() -> None:
    """Return once every rank has called this."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run a block on rank 0 before the other ranks, which then find the files that it wrote."""
    if dist.is_initialized() and dist.get_rank() != 0:
        dist.barrier()
    yield
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.barrier()


@torch.no_grad()
def mean_over_ranks(values: Tensor) -> Tensor:
    """Average a tensor over the ranks; the argument is not changed."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def sum_over_ranks(counts: Sequence[int]) -> list[int]:
    """Add up counts over the ranks, through the CPU: the host does not wait for its device."""
    if num_ranks() == 1:
        return list(counts)
    totals = torch.tensor(counts, dtype=torch.int64)
    dist.all_reduce(totals)
    return [int(total) for total in totals]


def gather_rows(*tensors: Tensor) -> tuple[tuple[Tensor, ...], slice]:
    """Concatenate the rows of all ranks, in the order of the ranks.

    Every rank's loss may depend on every row, so a row's gradient is the sum over the ranks.

    Args:
        tensors: The same number R of rows in each of them; ranks may differ in R. All ranks must
            call this, and all must run the backward pass through it.

    Returns:
        The tensors with G rows, and the slice of this rank's rows. On a single rank the tensors are
        the arguments.
    """
    if num_ranks() == 1:
        return tensors, slice(0, len(tensors[0]))
    own = torch.tensor([len(tensors[0])])  # on the CPU, as in sum_over_ranks
    parts = [torch.empty_like(own) for _ in range(num_ranks())]
    dist.all_gather(parts, own)
    counts = [int(part) for part in parts]
    first = sum(counts[: dist.get_rank()])
    gathered = tuple(_gather_padded(tensor, counts) for tensor in tensors)
    return gathered, slice(first, first + len(tensors[0]))


def _gather_padded(tensor: Tensor, counts: list[int]) -> Tensor:
    largest = max(counts)
    padding = tensor.new_zeros((largest - len(tensor), *tensor.shape[1:]))
    padded = torch.cat((tensor, padding)) if len(padding) else tensor
    parts: tuple[Tensor, ...] = all_gather(padded.contiguous())
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@torch.no_grad()
def average_gradients(scalars: Sequence[nn.Parameter]) -> None:
    """Replace the gradient of each scalar by its mean over the ranks.

    A rank whose batch gave no gradient counts as zero; without a gradient on any rank there is
    none, so that optimizers skip the parameter.
    """
    if not dist.is_initialized() or not scalars:
        return
    zero = torch.zeros_like(scalars[0])
    values = torch.stack([zero if p.grad is None else p.grad for p in scalars])
    counts = torch.stack([zero if p.grad is None else zero + 1 for p in scalars])
    means, shares = mean_over_ranks(torch.stack((values, counts)))
    for parameter, mean, share in zip(scalars, means, shares, strict=True):
        parameter.grad = mean.clone() if share > 0 else None
