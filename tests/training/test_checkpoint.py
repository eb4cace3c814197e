"""Checkpoints restore method and optimizers exactly; a save that fails leaves the previous one."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from training.checkpoint import (
    CheckpointWriter,
    checkpoint_step,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from training.optim import OptimConfig, OptimizerName, build_optimizers

TIMEOUT_S = 240


class Parts(nn.Module):
    """A model, a head that is trained later, a scalar and a buffer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.model, self.head = nn.Linear(width, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.centre: torch.Tensor
        self.register_buffer("centre", torch.zeros(3))

    def step(self, optimizers: tuple[torch.optim.Optimizer, ...], *, with_head: bool) -> None:
        """Take a step, and move the buffer."""
        self.zero_grad()
        output = self.model(torch.ones(2, 4)) * self.scale
        if with_head:
            output = self.head(output)
            self.centre.lerp_(output.detach().mean(0), 0.5)
        output.square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def make_state(optimizer: OptimizerName = "muon", *, seed: int = 0) -> tuple[Parts, OptimConfig]:
    torch.manual_seed(seed)
    return Parts(), OptimConfig(optimizer=optimizer)


@pytest.mark.parametrize(
    ("optimizer", "with_head"),
    [("muon", True), ("muon", False), ("adamw", True), ("adamw", False)],
)
def test_a_restored_run_continues_identically(
    optimizer: OptimizerName, with_head: bool, tmp_path: Path
) -> None:
    module, config = make_state(optimizer)
    optimizers = build_optimizers([module], config)
    for _ in range(3):
        module.step(optimizers, with_head=with_head)
    save_checkpoint(tmp_path, step=3, method=module, optimizers=optimizers)
    other, _ = make_state(seed=1)
    other_optimizers = build_optimizers([other], config)
    assert load_checkpoint(tmp_path, method=other, optimizers=other_optimizers) == 3
    for _ in range(2):  # the head's first steps, where it had none before
        module.step(optimizers, with_head=True)
        other.step(other_optimizers, with_head=True)
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_a_load_discards_the_optimizer_state_before_it(tmp_path: Path) -> None:
    module, config = make_state()
    optimizers = build_optimizers([module], config)
    module.step(optimizers, with_head=False)
    save_checkpoint(tmp_path, step=1, method=module, optimizers=optimizers)
    module.step(optimizers, with_head=True)
    assert load_checkpoint(tmp_path, method=module, optimizers=optimizers) == 1
    trained = {id(p) for o in optimizers for p in o.state}
    assert id(module.model.weight) in trained
    assert id(module.head.weight) not in trained


def load(folder: Path, module: Parts, optimizer: OptimizerName = "muon") -> int:
    optimizers = build_optimizers([module], OptimConfig(optimizer=optimizer))
    return load_checkpoint(folder, method=module, optimizers=optimizers)


def test_without_a_checkpoint_a_run_starts_at_step_0(tmp_path: Path) -> None:
    module, _ = make_state()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert load(tmp_path, module) == checkpoint_step(tmp_path) == 0
    for name, value in module.state_dict().items():
        assert torch.equal(before[name], value), name


def save(folder: Path, module: Parts, step: int, keep: int = 2) -> None:
    optimizers = build_optimizers([module], OptimConfig())
    save_checkpoint(folder, step=step, method=module, optimizers=optimizers, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_newest_checkpoints_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    module, _ = make_state()
    for step in (5, 70, 900):
        save(tmp_path, module, step)
    assert names(tmp_path) == ["step-00000070", "step-00000900"]
    assert checkpoint_step(tmp_path) == 900
    save(tmp_path, module, 900, keep=1)
    assert names(tmp_path) == ["step-00000900"]


def test_weights_are_safetensors_beside_a_header(tmp_path: Path) -> None:
    module, _ = make_state()
    save(tmp_path, module, 1)
    folder = latest_checkpoint(tmp_path)
    assert folder is not None
    files = {path.name for path in folder.iterdir()}
    assert files == {"checkpoint.json", "model.safetensors", "state"}
    header = json.loads((folder / "checkpoint.json").read_text("utf-8"))
    assert (header["step"], header["num_ranks"], header["format_version"]) == (1, 1, 2)
    assert header["optimizers"] == ["Muon", "AdamW"]


@pytest.mark.parametrize("broken", ["async_save", "save_file", "_publish"])
def test_an_error_while_saving_leaves_the_last_checkpoint(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = make_state()
    save(tmp_path, module, 1)
    weight = module.model.weight.detach().clone()

    def crash(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(f"training.checkpoint.{broken}", crash)
        nn.init.zeros_(module.model.weight)
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path, module, 2)
    other, _ = make_state(seed=1)
    assert load(tmp_path, other) == 1
    assert torch.equal(other.model.weight, weight)
    save(tmp_path, module, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_an_error_waits_for_the_part_that_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would write into the folder that the next checkpoint begins with."""
    waited: list[bool] = []

    class State(Future[None]):
        def exception(self, timeout: float | None = None) -> None:
            waited.append(timeout is None)

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("training.checkpoint.async_save", lambda *_, **__: State())
    monkeypatch.setattr("training.checkpoint.save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, make_state()[0], 1)
    assert waited == [True]


def test_a_state_is_copied_at_once_and_written_beside_the_next_steps(tmp_path: Path) -> None:
    module, config = make_state()
    optimizers = build_optimizers([module], config)
    module.step(optimizers, with_head=True)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    copied: list[Path] = []
    writer = CheckpointWriter(tmp_path, copy=copied.append)
    writer.start(step=1, method=module, optimizers=optimizers)
    module.step(optimizers, with_head=True)
    writer.finish()
    assert [folder.name for folder in copied] == ["step-00000001"]
    other, _ = make_state(seed=1)
    assert load(tmp_path, other) == 1
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert not torch.equal(value, module.state_dict()[name]), name


def test_an_error_of_writing_is_raised_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise OSError("disk full")

    module, config = make_state()
    optimizers = build_optimizers([module], config)
    writer = CheckpointWriter(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("training.checkpoint.save_file", crash)
        writer.start(step=1, method=module, optimizers=optimizers)
        with pytest.raises(OSError, match="disk full"):
            writer.start(step=2, method=module, optimizers=optimizers)
    writer.start(step=3, method=module, optimizers=optimizers)
    writer.finish()
    assert names(tmp_path) == ["step-00000003"]


def save_forever(folder: Path) -> None:
    """Save without end, at step s with every number s; print each step that is saved."""
    module, config = make_state()
    optimizers = build_optimizers([module], config)
    module.step(optimizers, with_head=True)
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    for step in count(1):
        with torch.no_grad():
            for value in module.state_dict().values():
                value.fill_(step)
            for state in states:
                for value in state.values():
                    value.fill_(step)
        save_checkpoint(folder, step=step, method=module, optimizers=optimizers)
        print(step, flush=True)


@pytest.mark.slow
def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path: Path, project_root: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.test_checkpoint", str(tmp_path)],
        cwd=project_root,
        env={**os.environ, "PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        printed = [int(process.stdout.readline()) for _ in range(4)]
    finally:
        process.kill()  # while it writes the next one
        process.communicate(timeout=TIMEOUT_S)
    other, config = make_state()
    optimizers = build_optimizers([other], config)
    step = load_checkpoint(tmp_path, method=other, optimizers=optimizers)
    assert step >= printed[-1]
    for name, value in other.state_dict().items():
        assert torch.equal(value, torch.full_like(value, step)), name
    moments = [o.state[p] for o in optimizers for g in o.param_groups for p in g["params"]]
    values = [value for state in moments for value in state.values()]
    assert values
    assert all(torch.equal(value, torch.full_like(value, step)) for value in values)


def test_a_checkpoint_of_another_model_optimizer_or_format_is_refused(tmp_path: Path) -> None:
    module, _ = make_state()
    save(tmp_path, module, 1)
    with pytest.raises(ValueError, match=r"another model or method: weight differ"):
        load(tmp_path, Parts(5))
    with pytest.raises(ValueError, match=r"by Muon and AdamW, not by AdamW: set optim.optimizer"):
        load(tmp_path, module, "adamw")
    module.more = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"another model or method: more.bias, more.weight"):
        load(tmp_path, module)
    path = tmp_path / "checkpoints/step-00000001/checkpoint.json"
    path.write_text(path.read_text("utf-8").replace('_version": 2', '_version": 1'), "utf-8")
    with pytest.raises(ValueError, match="has format 1, and this version reads 2: finish the run"):
        load(tmp_path, module)


def test_a_half_removed_checkpoint_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = make_state()
    save(tmp_path, module, 1)
    save(tmp_path, module, 2)

    def crash(*_: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        with pytest.raises(OSError, match="killed"):
            save(tmp_path, module, 3)
    assert checkpoint_step(tmp_path) == 3
    save(tmp_path, module, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


if __name__ == "__main__":
    save_forever(Path(sys.argv[1]))
