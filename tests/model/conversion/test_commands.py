"""The commands of `python -m model`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.conversion import commands
from model.conversion import errors as errors_module
from model.conversion.cache import PackageCache, content_of, key_of
from model.conversion.commands import SIGNALLED, bar_on_terminal, run
from model.conversion.convert import ConversionRequest
from model.conversion.prepare import Preparer
from model.conversion.source import HubSource
from model.graphs import Precision
from model.package import ModelPackage, open_package
from model.runtime.machine import Hardware


@pytest.fixture
def requests(
    monkeypatch: pytest.MonkeyPatch, tiny_package: ModelPackage
) -> list[ConversionRequest]:
    """Requests that would be converted."""
    asked: list[ConversionRequest] = []

    def take(_: Preparer, request_: ConversionRequest, *__: Any, **___: Any) -> ModelPackage:
        asked.append(request_)
        return tiny_package

    monkeypatch.setattr(Preparer, "write", take)
    monkeypatch.setattr(Preparer, "prepare", take)
    return asked


def test_convert_prints_the_packages_folder(
    requests: list[ConversionRequest],
    tiny_package: ModelPackage,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["convert", "google/tipsv2-b14@v1+google/tipsv2-b14-dpt", "out", "--name", "b"]
    arguments += ["--depth-activation=linear"]
    assert run([*arguments, "--precision=fp16", "--precision=fp32"]) == 0
    assert capsys.readouterr().out == f"{tiny_package.path}\n"
    (request_,) = requests
    assert request_.base == HubSource("google/tipsv2-b14", "v1")
    assert request_.dense == HubSource("google/tipsv2-b14-dpt")
    assert (request_.precisions, request_.name) == (("fp32", "fp16"), "b")
    assert request_.depth_activation == "linear"


@pytest.mark.parametrize(
    ("command", "has_gpu", "precisions", "may_fail"),
    [
        ("convert MODEL out", False, ("fp32", "fp16"), ("fp16",)),
        ("convert MODEL out --precision=fp32", False, ("fp32",), ()),
        ("convert MODEL out --precision=fp16", False, ("fp32", "fp16"), ()),
        ("prepare MODEL", False, ("fp32",), ()),
        ("prepare MODEL", True, ("fp32", "fp16"), ("fp16",)),
        ("prepare MODEL --precision=bf16", True, ("fp32", "bf16"), ()),
    ],
)
def test_graphs_for_gpus_are_written_unless_others_are_named(
    requests: list[ConversionRequest],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    has_gpu: bool,
    precisions: tuple[Precision, ...],
    may_fail: tuple[Precision, ...],
) -> None:
    monkeypatch.setattr(commands, "this_hardware", lambda: Hardware(has_gpu=has_gpu))
    assert run(command.replace("MODEL", "google/tipsv2-b14").split()) == 0
    (request_,) = requests
    assert (request_.precisions, request_.may_fail) == (precisions, may_fail)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["convert", "nowhere", "out"], "there is no folder 'nowhere'"),
        (["convert", "bundled", "out"], "is a model package already"),
        (["convert", "google/tipsv2-b14", "out", "--name=a/b"], "cannot be named 'a/b'"),
        (["convert", "a/b", "out", "--depth-activation=relu"], "a/b has no dense heads, so"),
        (["show", "nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_a_mistake_is_one_error_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert reason in said.err


@pytest.mark.parametrize("arguments", [[], ["convert", "a/b"], ["show", "bundled", "--verb"]])
def test_unknown_options_are_errors(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert "python -m model" in capsys.readouterr().err


def test_show_verifies_and_describes_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "bundled"]) == 0
    text = capsys.readouterr().out
    assert "every SHA-256 verified" in text
    manifest = open_package("bundled").manifest
    for name, entry in manifest.files.items():
        assert f"{entry.sha256[:12]}  {name}\n" in text
    assert all(f"`{measured.file}`" in text for measured in manifest.parity)


def test_check_without_torch_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(errors_module, "find_spec", lambda _: None)
    assert run(["check", "bundled"]) == 1
    assert "comparing a package with its model needs torch, " in capsys.readouterr().err


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, None])
def test_a_signal_and_a_closed_stdin_end_a_command_that_reports_json_lines(
    sent: signal.Signals | None, cache: PackageCache, tmp_path: Path
) -> None:
    source = tmp_path / "student"
    source.mkdir()
    (source / "config.json").touch()
    key = key_of(content_of(source), None, ["fp32"])
    command = [sys.executable, "-m", "model", "prepare", str(source), f"--cache={cache.root}"]
    command += ["--follow-stdin", "--report=json"]
    pipe = subprocess.PIPE
    with (
        cache.writing("student", key, print),
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            steps = [json.loads(process.stdout.readline())["step"] for _ in range(2)]
            assert steps[0].startswith("reading the files")
            assert steps[1].startswith(f"waiting for process {os.getpid()}")
            if sent is not None:
                process.send_signal(sent)
            else:
                process.stdin.close()
            assert process.wait(60) == SIGNALLED + (sent or signal.SIGTERM)
        finally:
            process.kill()
    assert not list((cache.root / "packages").iterdir())


def test_publish_prints_the_current_version(
    tmp_path: Path, tiny_package: ModelPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models/student"
    folder.mkdir(parents=True)
    (folder / "current").symlink_to("20200101T000001Z-0123456789ab")  # lost
    repository = ["--repository", str(folder)]
    assert run(["publish", str(tiny_package.path), *repository, "--if-empty"]) == 0
    first = capsys.readouterr().out.strip()
    assert Path(first).parent == folder
    assert run(["publish", "bundled", *repository, "--if-empty"]) == 0
    assert capsys.readouterr().out.strip() == first
    assert run(["publish", "bundled", *repository]) == 0
    second = capsys.readouterr().out.strip()
    assert second != first
    assert run(["publish", first, *repository]) == 0  # back to what was published before
    assert capsys.readouterr().out.strip() == first
    assert (folder / "current").resolve() == Path(first)


def test_a_terminal_shows_a_bar_of_the_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with bar_on_terminal() as say:
        for number in range(1, 15):
            say("step", f"comparing: {number} of 14")
    shown = capsys.readouterr().err
    assert "0/14" in shown
    assert "13/14" in shown
