"""The console script: its commands, exit statuses and error messages."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model import installation
from service.settings import Settings, load_settings
from tests.tipserve_cli.conftest import Fake
from tipserve_cli.commands import models
from tipserve_cli.program import COMMANDS, EXTRAS, FAILED, SERVE, WRONG_USAGE, main, new_app


def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no package of an extra can be imported."""
    for name in list(sys.modules):
        if name.startswith(("tipserve_cli.commands.", "tipserve_cli.bulk", "tipserve_client._")):
            monkeypatch.delitem(sys.modules, name)
    for name in EXTRAS:
        monkeypatch.setitem(sys.modules, name, None)


def test_help_names_every_command_and_needs_no_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert set(re.findall(r"^│ (\w+) ", text, re.MULTILINE)) == {*COMMANDS, SERVE}
    without_extras(monkeypatch)
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"Usage: tipserve {command}")
        assert "Examples:" in text
        assert "Exit status:" in text
    assert main(["--version"]) == 0
    assert re.fullmatch(r"tipserve (\d+\.\d+\.\d+|unknown)\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("given", "words"), [([], "Usage: tipserve"), (["embedd"], 'Unknown command "embedd"')]
)
def test_a_missing_or_unknown_command_is_wrong_usage(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == WRONG_USAGE
    assert words in capsys.readouterr().err


# What each command needs, so that only the option is wrong.
NEEDED = {
    "classify": ["a", "--classes=c"],
    "convert": ["a", "b"],
    "depth": ["a", "-o=b"],
    "embed": ["a", "-o", "b"],
    "features": ["a", "-o", "b.npy"],
    "normals": ["a", "-o=b"],
    "search": ["a.parquet"],
    "segment": ["a", "--classes=c", "-o=b"],
    "show": ["a"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", [["--modell=x"], ["--modell", "x"], ["--mod"], ["-u"]])
def test_an_unknown_option_is_an_error(
    command: str, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([*NEEDED.get(command, []), *option], [*option, *NEEDED.get(command, [])]):
        assert main([command, *arguments]) == WRONG_USAGE
        error = capsys.readouterr().err
        assert error.startswith(f"tipserve {command}: Unknown option: {option[0].split('=')[0]}")
        assert error.endswith(f"Run `tipserve {command} --help` for help.\n")


@pytest.mark.parametrize("option", ["--clases=dog", "--clases dog", "--clases"])
def test_an_unknown_option_names_the_one_that_is_meant(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["classify", "a"], ["segment", "a", "-o=b", "--classes=c"]):
        assert main([*arguments, *option.split()]) == WRONG_USAGE
        assert "Unknown option: --clases. Did you mean --classes?" in capsys.readouterr().err


def test_a_package_is_shown_and_a_missing_one_is_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["show", "bundled"]) == 0
    assert "every SHA-256 verified" in capsys.readouterr().out
    assert main(["convert", "no/such/folder/here", "out"]) == FAILED
    assert "no/such/folder/here" in capsys.readouterr().err


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
    def refuse() -> int:
        raise error

    monkeypatch.setattr(models, "run", refuse)
    assert main(["models"]) == FAILED
    assert capsys.readouterr().err == sentence


def test_a_missing_package_is_named_and_npz_coco_csv_and_grpc_need_none(
    fake: Fake,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_extras(monkeypatch)
    assert main(["embed", "a", "-o", "b.parquet"]) == FAILED
    assert "pyarrow is not installed. Run: pip install -e '.[cli]'\n" in capsys.readouterr().err
    monkeypatch.setattr(installation, "IS_CLONE", False)
    assert main(["embed", "a", "-o", "b.parquet"]) == FAILED
    assert "Run: pip install 'tipserve[cli]'\n" in capsys.readouterr().err
    archive = str(tmp_path / "a.npz")
    assert main(["embed", str(image), "-o", archive]) == 0
    assert main(["search", archive, "a dog"]) == 0
    assert capsys.readouterr().out.endswith(f"1.0000  {image}\n")
    given = [str(image), "--classes=dog"]
    assert main(["segment", *given, "--format=coco", f"-o={tmp_path / 'a.json'}"]) == 0
    assert main(["classify", *given, f"-o={tmp_path / 'a.csv'}"]) == 0
    client = importlib.import_module("tipserve_client._sync.client")
    client.Client("grpc://localhost:8001").close()
    client.Client("http://localhost:8000").close()
    assert main(["bench", "--url=http://127.0.0.1:9"]) == FAILED
    assert "pip install" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("start", ["-m service", "script"])
def test_a_module_of_the_working_folder_hides_none_of_ours(
    project_root: Path, tmp_path: Path, start: str
) -> None:
    work, script = tmp_path / "work", tmp_path / "tipserve"
    work.mkdir()
    for name in ("model", "training", "numpy"):
        (work / f"{name}.py").write_text("raise SystemExit('hidden')")
    script.write_text("from tipserve_cli.program import main\nmain(['serve', '--show-config'])")
    command = ["-m", "service", "--show-config"] if start == "-m service" else [str(script)]
    result = subprocess.run(
        [sys.executable, *command],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(project_root)},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "http_port = 8000" in result.stdout


def test_completion_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    script = tmp_path / "completion"
    assert main(["--install-completion", "--shell=bash", f"--output={script}"]) == 0
    assert list(tmp_path.iterdir()) == [script]
    words = set(re.findall(r"[\w-]+", script.read_text()))
    assert words >= {*COMMANDS, SERVE, "--classes", "--runtime", "overlay", "int8"}
    # Without a file, the start file of the shell loads it.
    assert main(["--install-completion", "--shell=bash"]) == 0
    assert "tipserve" in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize(
    ("given", "ray"), [([], None), (["--ray"], True), (["--ray", "auto"], "auto")]
)
def test_the_address_of_a_cluster_is_optional(given: list[str], ray: object) -> None:
    _, bound, _ = new_app().parse_args(["embed", "a", "-o", "b", *given, "--workers", "2"])
    assert (bound.args, bound.kwargs["cluster"].ray) == (("a",), ray)


@pytest.mark.parametrize("program", ["tipserve serve", "python -m service"])
def test_help_of_the_server_names_every_setting(
    program: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        load_settings(["--help"], {}, program)
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert text.startswith(f"usage: {program} [OPTIONS]")
    assert not re.search(r"tuple|Settings|lambda|default factory|None|SecretStr", text)
    assert re.search(r"--http-port INT .*\(default: 8000\)", text)
    named = set(re.findall(r" --([a-z0-9-]+)", text))
    settings = {name.replace("_", "-") for name in Settings.model_fields} - {"api-keys"}
    assert settings <= named
