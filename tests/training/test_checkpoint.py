"""Checkpoints restore method and optimizers exactly, and are never half written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from training.checkpoint import (
    CHECKPOINT_FILE,
    load_checkpoint,
    save_atomically,
    save_checkpoint,
)
from training.optim import OptimConfig, build_optimizers

State = tuple[nn.Linear, tuple[torch.optim.Optimizer, ...]]


@pytest.fixture
def make_state() -> Callable[[int], State]:
    """Build a layer that has taken some steps, with its optimizers."""

    def make(num_steps: int) -> State:
        torch.manual_seed(num_steps)
        layer = nn.Linear(4, 4)
        optimizers = build_optimizers([layer], OptimConfig())
        for _ in range(num_steps):
            step(layer, optimizers)
        return layer, optimizers

    return make


def step(layer: nn.Linear, optimizers: tuple[torch.optim.Optimizer, ...]) -> None:
    layer.zero_grad()
    layer(torch.ones(2, 4)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def test_what_was_saved_goes_on_as_it_would_have(
    make_state: Callable[[int], State], tmp_path: Path
) -> None:
    layer, optimizers = make_state(3)
    save_checkpoint(tmp_path, step=3, method=layer, optimizers=optimizers)
    other, other_optimizers = make_state(0)
    assert load_checkpoint(tmp_path, method=other, optimizers=other_optimizers) == 3
    for _ in range(2):
        step(layer, optimizers)
        step(other, other_optimizers)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def test_without_a_checkpoint_a_run_begins(
    make_state: Callable[[int], State], tmp_path: Path
) -> None:
    layer, optimizers = make_state(0)
    before = layer.weight.detach().clone()
    assert load_checkpoint(tmp_path, method=layer, optimizers=optimizers) == 0
    assert torch.equal(layer.weight, before)


def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.pt"
    save_atomically({"step": 1}, path)

    def crash(_: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        save_atomically({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_checkpoint_of_another_model_is_refused(
    make_state: Callable[[int], State], tmp_path: Path
) -> None:
    layer, optimizers = make_state(1)
    save_checkpoint(tmp_path, step=1, method=layer, optimizers=optimizers)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_checkpoint(tmp_path, method=nn.Linear(5, 4), optimizers=optimizers)


def test_code_in_a_checkpoint_is_not_run(
    make_state: Callable[[int], State], tmp_path: Path
) -> None:
    layer, optimizers = make_state(0)
    torch.save({"method": Path("evil")}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(tmp_path, method=layer, optimizers=optimizers)
