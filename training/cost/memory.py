"""The memory that one device needs for a run: state, what an image keeps, and what then fits.

It knows the modules by shape; nothing is allocated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import get_args

import torch
from torch import nn

from training.adafactor import Adafactor
from training.cost.devices import Device
from training.parallel import ParallelKind, blocks

_FLOAT32, _BFLOAT16 = 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Bytes on one device that do not grow with the batch.

    Attributes:
        parameters: Of the student and its head, float32, without averages.
        gradients: Of what is trained, float32; twice under DDP, which exchanges them through
            buckets.
        optimizer: Its moments.
        average: The moving average: the head's, or the head's and the vision tower's.
        teacher: A frozen teacher's weights.
        copies: bfloat16 copies of trained weights, which autocast keeps until the forward pass is
            over.
        gathered: Under FSDP2 what is whole beside the parts.
    """

    parameters: float
    gradients: float
    optimizer: float
    average: float
    teacher: float
    copies: float
    gathered: float

    @property
    def total(self) -> float:
        """Bytes of all of it."""
        return float(sum(getattr(self, item.name) for item in fields(self)))


def num_parameters(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def optimizer_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Bytes that optimizers will hold after their first step; step counters are not counted.

    AdamW keeps two moments of everything, Muon one, and Adafactor one and the means of the squares
    of rows and columns; all in float32.

    Raises:
        ValueError: The optimizer is none of these.
    """
    total = 0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            total += sum(_moments(optimizer, tuple(p.shape)) for p in group["params"])
    return _FLOAT32 * total


def _moments(optimizer: torch.optim.Optimizer, shape: tuple[int, ...]) -> int:
    numel = torch.Size(shape).numel()
    match optimizer:
        case torch.optim.AdamW():
            return 2 * numel
        case torch.optim.Muon():
            return numel
        case Adafactor() if len(shape) < 2:
            return 2 * numel
        case Adafactor():
            return numel + numel // shape[-1] + numel // shape[-2]
        case _:
            raise ValueError(f"what {type(optimizer).__name__} keeps is not known here")


def state_of(
    learner: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    averages: Sequence[nn.Module] = (),
    teacher_bytes: int = 0,
    parallel: ParallelKind,
    num_devices: int,
) -> State:
    """Lay a run's state out over its devices, as training/parallel.py does.

    Under DDP every device holds everything. Under FSDP2 parameters, gradients, moments and averages
    are cut in as many parts as there are devices; whole, with their gradients, are what belongs to
    no block, and two blocks: the one in use and the next. A frozen teacher is whole on every device
    under both, and so are autocast's copies.

    Args:
        learner: All that learns, on the meta device.
        optimizers: Of the learner's parameters.
        averages: Modules of the learner's that are moving averages and learn nothing themselves.
        teacher_bytes: Of a frozen teacher's weights.
        parallel: How the run is spread.
        num_devices: Over how many.

    Raises:
        ValueError: The kind is unknown.
    """
    if parallel not in get_args(ParallelKind):
        raise ValueError(f"parallel must be one of {get_args(ParallelKind)}, not {parallel!r}")
    is_cut = parallel == "fsdp2" and num_devices > 1
    share = num_devices if is_cut else 1
    averaged = sum(num_parameters(module) for module in averages)
    trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    buckets = 2 if parallel == "ddp" and num_devices > 1 else 1
    return State(
        parameters=_FLOAT32 * (num_parameters(learner) - averaged) / share,
        gradients=buckets * _FLOAT32 * trained / share,
        optimizer=optimizer_bytes(optimizers) / share,
        average=_FLOAT32 * averaged / share,
        teacher=teacher_bytes,
        copies=_BFLOAT16 * trained,
        gathered=2 * _FLOAT32 * _num_gathered(learner) if is_cut else 0,
    )


def _num_gathered(learner: nn.Module) -> int:
    sizes = [num_parameters(block) for block in blocks(learner)]
    return num_parameters(learner) - sum(sizes) + 2 * max(sizes, default=0)


def batch_that_fits(
    device: Device, state: State, bytes_per_image: float, *, usable_share: float = 0.9
) -> int:
    """Count the images that fit on one device at a time; 0 if not even the state does.

    Args:
        device: Its memory.
        state: What is there without images.
        bytes_per_image: What each adds at the peak.
        usable_share: What the allocator's gaps, the kernels' workspaces and the driver leave of
            the memory. Not measured here; a tenth is a customary reserve.
    """
    free = usable_share * device.memory_bytes - state.total
    return max(0, int(free // bytes_per_image))
