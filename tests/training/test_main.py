"""`python -m training`: jobs, overrides, exit status and messages."""

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


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["export"],
        ["debug", "--sets", "a=1"],
        # An abbreviation would become ambiguous with the next option of the same prefix.
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


@pytest.mark.parametrize("arguments", [["--help"], ["teacher"], ["distill"], ["head"]])
def test_help_and_the_first_line_of_a_job_come_before_the_large_libraries(
    arguments: list[str],
) -> None:
    code = """
import sys
import training.__main__ as program

program.importlib.import_module = sys.exit
try:
    program.main(sys.argv[1:])
finally:
    print({"torch", "transformers", "cv2"} & sys.modules.keys())
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert ended.stdout.endswith("set()\n")
    assert f"training {arguments[0]}: loading" in ended.stderr or arguments == ["--help"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_with_its_overrides(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainingConfig] = []

    def run(config: TrainingConfig) -> Path:
        seen.append(config)
        return Path("runs/x/model")

    monkeypatch.setattr(train_command, "train", run)
    assert main([recipe, "--set", "num_steps=7", "--set", "optim.muon_lr=1e-4"]) == 0
    (config,) = seen
    assert (config.num_steps, config.optim.muon_lr) == (7, 1e-4)
    assert config.name == RECIPES[recipe]().name


def test_a_stopped_run_has_the_status_of_sigterm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: TrainingConfig) -> Path:
        raise Stopped(7)

    monkeypatch.setattr(train_command, "train", run)
    assert main(["debug"]) == 143
    assert "saved at step 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["debug", "--set", "bogus=1"], "error: unknown setting 'bogus'"),
        (["debug", "--set", "data.folder=F", "--set", "runs=F/runs"], "python -m training data"),
        (["export", "--checkpoint", "F", "--output", "F/o", "--name", "n"], "not a complete"),
    ],
)
def test_an_error_is_one_message_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("F").mkdir()
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


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
