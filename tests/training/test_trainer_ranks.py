"""Whole runs by two real ranks over gloo, DDP and FSDP2, equal the run of one process."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from training.checkpoint import checkpoint_step, latest_checkpoint
from training.data.folder import DataFolder
from training.observation import Row, read_log

PROGRAM = Path(__file__).with_name("trainer_rank.py")
TIMEOUT_S = 600
RELATIVE = {"pretrain": 1e-5, "distill": 1e-5, "accumulate": 1e-4}  # the last by Muon
KINDS = ("ddp", "fsdp2")

# Whichever test comes first waits for all runs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_S)]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program of a rank, as a module."""
    spec = spec_from_file_location("trainer_rank", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(
    program: ModuleType,
    data_folder: DataFolder,
    tmp_path_factory: pytest.TempPathFactory,
    project_root: Path,
) -> Path:
    """Every run, by one process under `alone` and by two ranks under `shared`."""
    root = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as files:
        patch.delenv("WORLD_SIZE", raising=False)
        for name in ("_TOKENIZER_SCENES", "development_benchmarks"):
            patch.setattr(program.scene_inputs, name, getattr(program.scene_inputs, name))
        program.simplify()
        place = program.Place(
            root=root / "alone", data=data_folder.path, teacher=root / "alone/pretrain", num_ranks=1
        )
        torch.set_num_threads(1)
        program.run(program.config_of("pretrain", place))
        processes = [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(rank), str(root), str(data_folder.path)],
                cwd=project_root,
                env={**os.environ, "PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"},
                stdout=files.enter_context((root / f"rank-{rank}.out").open("w")),
                stderr=files.enter_context((root / f"rank-{rank}.err").open("w")),
            )
            for rank in range(2)
        ]
        try:
            for method in ("distill", "accumulate"):
                program.run(program.config_of(method, place))
            for process in processes:
                process.wait(timeout=TIMEOUT_S)
        finally:
            for process in processes:
                process.kill()
                process.wait(timeout=TIMEOUT_S)
    errors = [(root / f"rank-{rank}.err").read_text("utf-8") for rank in range(2)]
    assert [process.returncode for process in processes] == [0, 0], errors
    return root


def curve(run: Path) -> list[Row]:
    """The log without its clocks and without rank 0's scores."""
    return [
        {
            name: value
            for name, value in row.items()
            if name not in ("time_s", "step_s", "wait_s") and not name.startswith("val")
        }
        for row in read_log(run)
    ]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


@pytest.mark.parametrize("method", ["pretrain", "distill", "accumulate"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one_does_on_the_global_batch(
    folder: Path, kind: str, method: str
) -> None:
    alone, shared = curve(folder / "alone" / method), curve(folder / "shared" / f"{kind}-{method}")
    assert len(alone) == (4 if method == "accumulate" else 20)
    assert {"loss", "cls1", "cls2", "dino", "grad_norm"} <= set(alone[0])
    assert {"ibot", "patch"} & set(alone[0])
    for expected, row in zip(alone, shared, strict=True):
        assert row.keys() == expected.keys()
        assert row["loss"] == pytest.approx(expected["loss"], rel=RELATIVE[method]), row["step"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_that_two_ranks_leave_is_whole(folder: Path, kind: str) -> None:
    expected = weights(folder / "alone/pretrain")
    found = weights(folder / "shared" / f"{kind}-pretrain")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Biases of keys change nothing: they are made of rounding alone.
        assert (found[name] - value).norm() <= 1e-2 * value.norm(), name


def test_a_stop_on_one_rank_saves_on_all_and_the_resumed_run_is_the_same(
    folder: Path, program: ModuleType
) -> None:
    whole, stopped = folder / "shared/fsdp2-pretrain", folder / "shared/fsdp2-stopped-pretrain"
    starts = json.loads((stopped / "run.json").read_text("utf-8"))["starts"]
    assert [start["from_step"] for start in starts] == [0, program.STOP_AFTER + 1]
    assert curve(stopped) == curve(whole)
    resumed = weights(stopped)
    assert all(torch.equal(resumed[name], value) for name, value in weights(whole).items())
    asked = [(folder / f"rank-{rank}.err").read_text("utf-8") for rank in range(2)]
    assert ["SIGTERM: finishing the step" in text for text in asked] == [False, True]


def test_one_process_resumes_a_checkpoint_of_two_ranks(
    folder: Path,
    program: ModuleType,
    data_folder: DataFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = folder / "shared/fsdp2-stopped-pretrain"
    first = shared / f"checkpoints/step-{program.STOP_AFTER + 1:08d}"
    latest = latest_checkpoint(shared)
    assert latest is not None
    assert [path.name for path in sorted(first.parent.iterdir())] == [first.name, latest.name]
    run = tmp_path / "pretrain"
    shutil.copytree(shared, run)
    shutil.rmtree(run / "checkpoints" / latest.name)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    place = program.Place(
        root=tmp_path, data=data_folder.path, teacher=folder / "alone/pretrain", num_ranks=1
    )
    program.run(program.config_of("pretrain", place))
    for expected, row in zip(curve(folder / "alone/pretrain"), curve(run), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=RELATIVE["pretrain"]), row["step"]


def test_the_first_rank_writes_and_the_others_only_their_part_of_the_state(folder: Path) -> None:
    first, second = (
        json.loads((folder / f"rank-{rank}.json").read_text("utf-8")) for rank in range(2)
    )
    for name in ("log.jsonl", "tensorboard", "tokenizer"):
        assert f"ddp-pretrain/{name}" in first
    assert any(path.startswith("ddp-pretrain/.run.json.") for path in first)
    assert second
    foreign = [path for path in second if "/checkpoints/.partial-" not in path]
    assert not foreign
    assert not [path for path in second if "/state" not in path]


def test_a_run_of_two_ranks_is_recorded_scored_and_shown_once(folder: Path) -> None:
    for kind in KINDS:
        run = folder / "shared" / f"{kind}-accumulate"
        (start,) = json.loads((run / "run.json").read_text("utf-8"))["starts"]
        assert start["host"]["num_ranks"] == 2
        alone = json.loads((folder / "alone/accumulate/run.json").read_text("utf-8"))
        assert start["state_bytes"] == alone["starts"][0]["state_bytes"]
        assert checkpoint_step(run) == 4
        assert "val/patches" in read_log(run)[-1]
        assert len(list((run / "tensorboard").iterdir())) == 1
    shown = [(folder / f"rank-{rank}.out").read_text("utf-8") for rank in range(2)]
    assert "4/4" in shown[0]
    assert shown[1] == ""
