"""Names the tensors of optimizers' states by their parameters, for checkpoints.

An entry is "optimizer.PARAMETER.FIELD". A parameter that has had no gradient yet has no entry.
Learning rates and other settings are not saved: they follow from the configuration and the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

PREFIX = "optimizer."

Optimizers = Sequence[torch.optim.Optimizer]


def optimizer_kinds(optimizers: Optimizers) -> list[str]:
    """Class names in order, such as ["Muon", "AdamW"]."""
    return [type(optimizer).__name__ for optimizer in optimizers]


def _owners(
    method: nn.Module, optimizers: Optimizers
) -> dict[str, tuple[nn.Parameter, torch.optim.Optimizer]]:
    names = {parameter: name for name, parameter in method.named_parameters()}
    return {
        names[parameter]: (parameter, optimizer)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def optimizer_tensors(method: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """Every tensor of the optimizers' states by name; they are not copied."""
    return {
        f"{PREFIX}{name}.{field}": value
        for name, (parameter, optimizer) in _owners(method, optimizers).items()
        for field, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Restoring:
    """Room for what is read, and where it goes.

    Attributes:
        tensors: To be filled, by name.
        places: Parameter, optimizer and field of each.
    """

    tensors: dict[str, Tensor]
    places: dict[str, tuple[nn.Parameter, torch.optim.Optimizer, str]]

    def finish(self) -> None:
        """Hand the filled tensors to the optimizers, in place of what they held."""
        for _, optimizer, _ in self.places.values():
            optimizer.state.clear()
        for name, (parameter, optimizer, field) in self.places.items():
            optimizer.state[parameter][field] = _cut(self.tensors[name], parameter)


def restore_optimizers(
    method: nn.Module, optimizers: Optimizers, entries: dict[str, Any]
) -> Restoring:
    """Make room for the optimizer states of a checkpoint.

    Args:
        method: Whose parameters are optimized.
        optimizers: As they were built, of the kinds that were saved.
        entries: The checkpoint's metadata of each tensor by name; others' are passed over.

    Raises:
        ValueError: A saved parameter is not trained here.
    """
    owners = _owners(method, optimizers)
    tensors: dict[str, Tensor] = {}
    places: dict[str, tuple[nn.Parameter, torch.optim.Optimizer, str]] = {}
    for entry_name, entry in entries.items():
        if not entry_name.startswith(PREFIX):
            continue
        name, _, field = entry_name.removeprefix(PREFIX).rpartition(".")
        if name not in owners:
            raise ValueError(f"the checkpoint trained {name}, which this method does not")
        parameter, optimizer = owners[name]
        tensors[entry_name] = _room(entry.size, entry.properties.dtype, parameter, field)
        places[entry_name] = (parameter, optimizer, field)
    return Restoring(tensors=tensors, places=places)


def _room(size: torch.Size, dtype: torch.dtype, parameter: nn.Parameter, field: str) -> Tensor:
    if field == "step":  # optimizers count on the CPU
        return torch.zeros(size, dtype=dtype)
    if size == parameter.shape:
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    return torch.zeros(size, dtype=dtype, device=parameter.device)


def _cut(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Spread a statistic of rows or columns over the ranks as its parameter is."""
    data = parameter.data
    if not isinstance(data, DTensor) or isinstance(value, DTensor) or value.ndim == 0:
        return value
    is_cut = value.shape[0] == parameter.shape[0]
    place: Placement = Shard(0) if is_cut else Replicate()
    return distribute_tensor(value, data.device_mesh, [place], src_data_rank=None)
