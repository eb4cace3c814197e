"""Checkpoints restore method and optimizers exactly; a save that fails leaves the previous one."""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from training.checkpoint import CheckpointWriter, load_checkpoint, save_checkpoint
from training.optim import OptimConfig, OptimizerName, build_optimizers

TIMEOUT_S = 240
Optimizers = tuple[torch.optim.Optimizer, ...]


class Parts(nn.Module):
    """A model, a head that is trained later, a scalar and a buffer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.model, self.head = nn.Linear(width, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.centre: torch.Tensor
        self.register_buffer("centre", torch.zeros(3))

    def step(self, optimizers: Optimizers, *, with_head: bool) -> None:
        """Take a step, and move the buffer."""
        self.zero_grad()
        output = self.model(torch.ones(2, 4)) * self.scale
        if with_head:
            output = self.head(output)
            self.centre.lerp_(output.detach().mean(0), 0.5)
        output.square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def make(optimizer: OptimizerName = "muon", *, seed: int = 0) -> tuple[Parts, Optimizers]:
    torch.manual_seed(seed)
    module = Parts()
    return module, build_optimizers([module], OptimConfig(optimizer=optimizer))


def load(folder: Path, module: Parts, optimizer: OptimizerName = "muon") -> int:
    optimizers = build_optimizers([module], OptimConfig(optimizer=optimizer))
    return load_checkpoint(folder, method=module, optimizers=optimizers)


def save(folder: Path, module: Parts, step: int, keep: int = 2) -> None:
    optimizers = build_optimizers([module], OptimConfig())
    save_checkpoint(folder, step=step, method=module, optimizers=optimizers, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def crash(*_: object, **__: object) -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("with_head", [True, False])
def test_a_restored_run_continues_identically(
    optimizer: OptimizerName, with_head: bool, tmp_path: Path
) -> None:
    module, optimizers = make(optimizer)
    other, other_optimizers = make(optimizer, seed=1)
    other.step(other_optimizers, with_head=True)  # a load discards this state
    assert load_checkpoint(tmp_path, method=other, optimizers=other_optimizers) == 0
    for _ in range(3):
        module.step(optimizers, with_head=with_head)
    save_checkpoint(tmp_path, step=3, method=module, optimizers=optimizers)
    assert load_checkpoint(tmp_path, method=other, optimizers=other_optimizers) == 3
    trained = {id(p) for o in other_optimizers for p in o.state}
    assert (id(other.head.weight) in trained) is with_head
    for _ in range(2):  # the head's first steps, where it had none before
        module.step(optimizers, with_head=True)
        other.step(other_optimizers, with_head=True)
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("broken", ["async_save", "_publish"])
def test_an_error_while_saving_leaves_the_last_checkpoint(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = make()
    save(tmp_path, module, 1)
    weight = module.model.weight.detach().clone()
    with monkeypatch.context() as patch:
        patch.setattr(f"training.checkpoint.{broken}", crash)
        nn.init.zeros_(module.model.weight)
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path, module, 2)
    other, _ = make(seed=1)
    assert load(tmp_path, other) == 1
    assert torch.equal(other.model.weight, weight)
    save(tmp_path, module, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_state_is_copied_at_once_and_written_beside_the_next_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, optimizers = make()
    module.step(optimizers, with_head=True)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    copied: list[Path] = []
    writer = CheckpointWriter(tmp_path, copy=copied.append)
    writer.start(step=1, method=module, optimizers=optimizers)
    module.step(optimizers, with_head=True)
    writer.finish()
    assert [folder.name for folder in copied] == ["step-00000001"]
    other, _ = make(seed=1)
    assert load(tmp_path, other) == 1
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert not torch.equal(value, module.state_dict()[name]), name
    with monkeypatch.context() as patch:
        patch.setattr("training.checkpoint._publish", crash)
        writer.start(step=2, method=module, optimizers=optimizers)
        with pytest.raises(OSError, match="disk full"):  # by the next call
            writer.start(step=3, method=module, optimizers=optimizers)
    writer.start(step=4, method=module, optimizers=optimizers)
    writer.finish()
    assert names(tmp_path) == ["step-00000001", "step-00000004"]


def save_forever(folder: Path) -> None:
    """Save without end, at step s with every number s; print each step that is saved."""
    module, optimizers = make()
    module.step(optimizers, with_head=True)
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    for step in count(1):
        with torch.no_grad():
            for values in (module.state_dict(), *states):
                for value in values.values():
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
    other, optimizers = make()
    step = load_checkpoint(tmp_path, method=other, optimizers=optimizers)
    assert step >= printed[-1]
    moments = [o.state[p] for o in optimizers for g in o.param_groups for p in g["params"]]
    assert all(moments)
    for state in (other.state_dict(), *moments):
        for name, value in state.items():
            assert torch.equal(value, torch.full_like(value, step)), name


def test_a_checkpoint_of_another_model_optimizer_or_format_is_refused(tmp_path: Path) -> None:
    module, _ = make()
    save(tmp_path, module, 1)
    with pytest.raises(ValueError, match=r"another model or method: model.weight differ"):
        load(tmp_path, Parts(5))
    with pytest.raises(ValueError, match=r"by Muon and AdamW, not by AdamW: set optim.optimizer"):
        load(tmp_path, module, "adamw")
    module.more = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"another model or method: more.bias, more.weight"):
        load(tmp_path, module)
    path = tmp_path / "checkpoints/step-00000001/checkpoint.json"
    path.write_text(path.read_text("utf-8").replace('_version": 3', '_version": 2'), "utf-8")
    with pytest.raises(ValueError, match="has format 2, and this version reads 3: finish the run"):
        load(tmp_path, module)


if __name__ == "__main__":
    save_forever(Path(sys.argv[1]))
