"""`python -m training`: jobs, overrides, exit status and clear messages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.__main__ import main
from training.commands import data as data_command
from training.commands import train as train_command
from training.commands.train import RECIPES
from training.config import TrainingConfig
from training.data.folder import DataFolder
from training.preemption import Stopped


@pytest.mark.slow
def test_a_mistake_ends_the_program_with_status_2(project_root: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "training", "debug", "--set", "bogus=1"],
        cwd=project_root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=240,  # what it waits for is imports, on a busy machine
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: unknown setting 'bogus': 'bogus' is not one of name, ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["export"],
        ["debug", "--sets", "a=1"],
        # Half a name is no name: the next option of that beginning would change what it means.
        ["evaluate", "run", "--scene", "3"],
        ["caption", "gemini", "--shard", "a", "--output", "b"],
    ],
)
def test_unknown_jobs_and_missing_options_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m training" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_with_its_overrides(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[TrainingConfig] = []

    def run(config: TrainingConfig) -> Path:
        seen.append(config)
        return Path("runs/x/model")

    monkeypatch.setattr(train_command, "train", run)
    assert main([recipe, "--set", "num_steps=7", "--set", "optim.muon_lr=1e-4"]) == 0
    (config,) = seen
    assert (config.num_steps, config.optim.muon_lr) == (7, 1e-4)
    assert config.name == RECIPES[recipe]().name
    assert "The model is in runs/x/model" in capsys.readouterr().out


def test_a_run_that_was_stopped_has_not_ended_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: TrainingConfig) -> Path:
        raise Stopped(7)

    monkeypatch.setattr(train_command, "train", run)
    assert main(["debug"]) == 143
    assert "saved at step 7; run the same command to resume" in capsys.readouterr().out


def test_training_without_data_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    status = main(["debug", "--set", f"data.folder={tmp_path}", "--set", f"runs={tmp_path}/runs"])
    assert status == 2
    assert "run `python -m training data --folder" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--with-stamps"]])
def test_data_is_fetched_and_built(
    flags: list[str],
    data_folder: DataFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fetched: list[tuple[Path, bool]] = []

    def fetch(folder: Path, *, with_stamps: bool) -> None:
        fetched.append((folder, with_stamps))

    monkeypatch.setattr(data_command, "fetch", fetch)
    assert main(["data", "--folder", str(data_folder.path), *flags]) == 0
    assert fetched == [(data_folder.path, bool(flags))]
    assert "72 drawings are ready" in capsys.readouterr().out


def test_a_failing_fetch_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(folder: Path, *, with_stamps: bool) -> None:
        raise subprocess.CalledProcessError(1, ["npm", "install", str(folder), str(with_stamps)])

    monkeypatch.setattr(data_command, "fetch", fetch)
    assert main(["data", "--folder", str(tmp_path)]) == 2
    assert "non-zero exit status 1" in capsys.readouterr().err


def test_export_of_an_incomplete_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(tmp_path), "--output", str(tmp_path / "o"), "--name", "n"]
    assert main(["export", *arguments]) == 2
    assert "is not a complete checkpoint" in capsys.readouterr().err
