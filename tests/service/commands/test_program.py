"""The console script: its commands, exit statuses and error messages."""

import importlib
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.commands import models
from service.commands.program import COMMANDS, FAILED, PROGRAMS, WRONG_USAGE, main


def test_the_console_script_is_declared(project_root: Path) -> None:
    document = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = document["project"]["scripts"]["tipserve"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    named = set(re.findall(r"^  (\w+)  ", capsys.readouterr().out, re.MULTILINE))
    assert named == {*COMMANDS, *PROGRAMS}
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0


@pytest.mark.parametrize(("given", "words"), [([], "usage:"), (["embedd"], "unknown command")])
def test_a_missing_or_unknown_command_is_wrong_usage(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == WRONG_USAGE
    assert words in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"tipserve (\d+\.\d+\.\d+|unknown)\n", capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_an_error(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = {"embed": ["a", "-o", "b"], "segment": ["a", "--classes=c", "-o=b"]}
    with pytest.raises(SystemExit) as ended:
        main([command, *needed.get(command, []), "--modell=x"])
    assert ended.value.code == WRONG_USAGE
    assert "unrecognized arguments: --modell=x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        (["serve", "--http-port=0"], ["-m", "service", "--http-port=0"]),
        (["show", "bundled"], ["-m", "model", "show", "bundled"]),
        (["convert", "a", "b"], ["-m", "model", "convert", "a", "b"]),
    ],
)
def test_other_programs_replace_the_process(given: list[str], becomes: list[str]) -> None:
    taken: list[list[str]] = []
    main(given, execute=lambda path, arguments: taken.append(arguments))
    assert taken == [[sys.executable, *becomes]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["models", "--url=ftp://x"], "--url: 'ftp://x': write http://host:8000"),
        (["models", "--url=http://x", "--runtime=onnx"], "--runtime has no effect with --url"),
        (["models", "--model=no/such/folder/here"], "no/such/folder/here"),
        (["models", "--runtime=abacus"], "runtime: "),
        (["models", "--url=http://x", "--api-key-file=missing"], "cannot be read"),
        (["segment", "missing.jpg", "--classes=a", "-o=m.png"], "missing.jpg cannot be read"),
        (["embed", "missing", "-o=x.parquet"], "missing does not exist"),
        (["embed", ".", "-o=x.parquet", "--outputs=cls3"], "--outputs 'cls3' is invalid"),
        (["embed", ".", "-o=x.csv"], "Give a file name that ends in .parquet, or a folder"),
    ],
)
def test_a_wrong_argument_is_named_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == FAILED
    error = capsys.readouterr().err
    assert error.startswith(f"tipserve {arguments[0]}: ")
    assert sentence in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device"), "tipserve models: No space left on device.\n"),
        (OSError("Disk is full"), "tipserve models: Disk is full.\n"),
        (OSError(13, "Permission denied", "x"), "tipserve models: x: Permission denied.\n"),
    ],
)
def test_system_errors_become_messages(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    sentence: str,
) -> None:
    def refuse(arguments: Sequence[str]) -> int:
        raise error

    monkeypatch.setattr(models, "run", refuse)
    assert main(["models"]) == FAILED
    assert capsys.readouterr().err == sentence


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("service.bulk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "service.commands.embed", raising=False)
    monkeypatch.delitem(sys.modules, "service.commands.progress", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert main(["embed", "a", "-o", "b.parquet"]) == FAILED
    assert "pip install 'tipserve[cli]'" in capsys.readouterr().err
