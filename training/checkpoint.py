"""Saves and resumes a run: method, optimizers and step in one file, written atomically."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

CHECKPOINT_FILE = "checkpoint.pt"


def save_atomically(state: object, path: Path) -> None:
    """Write a file of tensors; a crash leaves what was there before."""
    temporary = path.with_name(f"{path.name}.tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def save_checkpoint(
    folder: Path, *, step: int, method: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...]
) -> None:
    """Write the state after `step` steps; a crash leaves the previous checkpoint whole."""
    state = {
        "step": step,
        "method": method.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    save_atomically(state, folder / CHECKPOINT_FILE)


def load_checkpoint(
    folder: Path, *, method: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...]
) -> int:
    """Restore a run in place.

    Returns:
        The number of steps done; 0 where there is no checkpoint.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    method.load_state_dict(state["method"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
