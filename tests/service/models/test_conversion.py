"""Conversion runs in a child process: its output is logged, its end is reported, none is left."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from model.conversion.cache import PackageCache, content_of, key_of
from model.package import ModelPackage, PackageError, open_package
from service.errors import Unavailable
from service.models import conversion as conversion_module
from service.models.conversion import Conversion, ModelSource, open_source

LIMIT_S = 30.0


def say(*reports: dict[str, str], then: str = "") -> list[str]:
    """A program that says this, and then does that."""
    lines = "\n".join(json.dumps(report) for report in reports)
    return ["-c", f"print({lines!r}, flush=True)\n{then}"]


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    """A checkpoint's folder, though nothing could be read from it."""
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    return ModelSource(str(folder), cache=tmp_path / "cache")


@pytest.fixture
def converted(source: ModelSource, tiny_package: ModelPackage) -> Path:
    """The source's package in the cache, as a conversion would have left it."""
    assert source.cache is not None
    key = key_of(content_of(Path(source.folder)), None, ["fp32"])
    folder = PackageCache(source.cache).folder("student", key)
    shutil.copytree(tiny_package.path, folder)
    return folder


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def is_running(pid: int) -> bool:
    """A zombie counts as ended: the parent of an orphan may never reap it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_steps_are_logged_as_they_come(
    source: ModelSource, caplog: pytest.LogCaptureFixture
) -> None:
    program = say({"step": "exporting"}, {"warning": "again"}, {"result": "/cache/a"})
    with caplog.at_level(logging.INFO), Conversion([], program=program) as conversion:
        assert conversion.wait(source, "student") == Path("/cache/a")
    records: list[Any] = caplog.records
    logged = [(r.levelname, r.fields["model"], r.fields["step"]) for r in records]
    assert logged == [("INFO", "student", "exporting"), ("WARNING", "student", "again")]
    assert has_ended(conversion.pid)


def test_what_it_says_is_wrong_is_the_error(source: ModelSource) -> None:
    program = say({"error": "there is no room; make some"}, then="import sys; sys.exit(1)")
    with (
        pytest.raises(PackageError, match=r"^there is no room; make some$"),
        Conversion([], program=program) as conversion,
    ):
        conversion.wait(source, "student")


def test_a_crash_is_told_with_its_last_lines(source: ModelSource) -> None:
    with (
        pytest.raises(
            PackageError, match=r"(?s)student ended with status 1; output: .*odd weights"
        ),
        Conversion([], program=say(then="raise MemoryError('odd weights')")) as conversion,
    ):
        conversion.wait(source, "student")


def test_a_kill_is_taken_for_want_of_memory(source: ModelSource) -> None:
    kill = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    with (
        pytest.raises(PackageError, match=r"was killed, .*memory.*python -m model convert"),
        Conversion([], program=say(then=kill)) as conversion,
    ):
        conversion.wait(source, "student")


@pytest.mark.parametrize("is_stubborn", [False, True])
def test_a_cancelled_load_ends_it(
    source: ModelSource, is_stubborn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.models.conversion.CLEAR_UP_S", 0.2)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if is_stubborn else ""
    program = say({"step": "a"}, then=f"import signal\n{ignore}\nsignal.pause()")
    monkeypatch.setattr(Conversion, "_log", lambda *_: source.cancelled.set())
    with pytest.raises(Unavailable), Conversion([], program=program) as conversion:
        conversion.wait(source, "student")
    assert has_ended(conversion.pid)


STUBBORN = """
import json, signal, sys
from pathlib import Path
from model.conversion.cache import PackageCache
cache = PackageCache(Path(sys.argv[1]))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with cache.writing("student", 20 * "a", print) as folder:
    folder.with_name(f".{folder.name}.half").mkdir()
    print(json.dumps({"step": "begun"}), flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_what_a_killed_conversion_left_is_removed(
    source: ModelSource, is_cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source.cache is not None
    begun: list[Conversion] = []

    def begin(arguments: list[str]) -> Conversion:
        program = ["-c", STUBBORN, str(source.cache)]
        begun.append(Conversion(arguments, program=program))
        return begun[0]

    def end(*_: object) -> None:
        assert [path.name for path in packages.iterdir()] == [f".student-{20 * 'a'}.half"]
        (packages / f".other-{20 * 'b'}.half").mkdir()
        if is_cancelled:
            source.cancelled.set()
        else:  # as where memory ends
            os.kill(begun[0].pid, signal.SIGKILL)

    packages = source.cache / "packages"
    monkeypatch.setattr(conversion_module, "CLEAR_UP_S", 0.2)
    monkeypatch.setattr(Conversion, "_log", end)
    monkeypatch.setattr(conversion_module, "Conversion", begin)
    with (
        PackageCache(source.cache).writing("other", 20 * "b", print),
        pytest.raises(Unavailable if is_cancelled else PackageError),
    ):
        open_source(source)
    # Another's conversion goes on.
    assert [path.name for path in packages.iterdir()] == [f".other-{20 * 'b'}.half"]


KILLED_SERVER = """
import sys, os, signal
from service.models.conversion import Conversion
conversion = Conversion([], program=["-c", sys.argv[1]])
print(conversion.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
FOLLOWER = """
from model.conversion.commands import _end_with_stdin
_end_with_stdin()
"""


def test_it_does_not_outlive_a_server_that_was_killed() -> None:
    command = [sys.executable, "-c", KILLED_SERVER, FOLLOWER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert server.wait(LIMIT_S) == -signal.SIGKILL
    until = time.monotonic() + LIMIT_S
    while is_running(pid) and time.monotonic() < until:
        threading.Event().wait(0.02)
    assert not is_running(pid)


@pytest.mark.slow
def test_a_converted_package_is_served_under_the_sources_name(
    source: ModelSource, converted: Path
) -> None:
    package = open_source(source)
    assert package.path == converted
    assert package.manifest.name == "student"
    renamed = ModelSource(source.folder, "other", cache=source.cache)
    assert open_source(renamed).manifest.name == "other"


def test_a_broken_package_in_the_cache_is_mended_and_served(
    source: ModelSource,
    converted: Path,
    tiny_package: ModelPackage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (converted / "config.json").write_bytes(b"[" * (converted / "config.json").stat().st_size)

    def prepare(*_: object, verify: bool) -> Path:
        if verify:
            shutil.copytree(tiny_package.path, converted, dirs_exist_ok=True)
        return converted

    monkeypatch.setattr(conversion_module, "_prepare", prepare)
    with caplog.at_level(logging.WARNING):
        assert open_source(source).path == converted
    records: list[Any] = caplog.records
    assert ["SHA-256" in record.fields["reason"] for record in records] == [True]


def test_packages_are_opened_as_they_are(tiny_package: ModelPackage, tmp_path: Path) -> None:
    for cache in (None, tmp_path / "cache"):
        source = ModelSource(str(tiny_package.path), cache=cache)
        assert open_source(source) == open_package(tiny_package.path)
    assert not (tmp_path / "cache").exists()


def test_what_callers_name_is_never_converted(source: ModelSource) -> None:
    with pytest.raises(PackageError, match=r"no tipserve\.json"):
        open_source(ModelSource(source.folder))


def test_the_precisions_of_the_settings_are_asked_for(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def refuse(self: Conversion, arguments: list[str]) -> None:
        asked.append(arguments)
        raise PackageError("no")

    monkeypatch.setattr(Conversion, "__init__", refuse)
    precise = ModelSource.from_setting(source.folder, Path("/cache"), ("fp16", "int8"))
    with pytest.raises(PackageError):
        open_source(precise)
    assert asked[0][:3] == ["prepare", "--cache=/cache", "--report=json"]
    assert "--precision=fp16 --precision=int8" in " ".join(asked[0])
    assert asked[0][-2:] == ["--", source.folder]
