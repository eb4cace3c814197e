"""Names of models and packages; conversion in a child process, which never outlives the server."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from model.conversion.cache import PackageCache, content_of, key_of
from model.package import ModelPackage, PackageError, open_package
from service.errors import InvalidRequest, ModelNotFound, Unavailable
from service.models import conversion as conversion_module
from service.models.conversion import (
    ModelSource,
    check_model_name,
    check_names,
    find_package,
    list_packages,
    open_source,
    run_conversion,
)

LIMIT_S = 30.0


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("repository/a", "repository/deep/b", "repository/.hidden", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "tipserve.json").touch()
    (tmp_path / "repository" / "no-package").mkdir()
    (tmp_path / "repository" / "way-out").symlink_to(tmp_path / "outside")
    (tmp_path / "repository" / "alias").symlink_to("a")
    (tmp_path / "repository" / "file").touch()
    return tmp_path / "repository"


def test_packages_below_the_repository_are_found(repository: Path) -> None:
    assert find_package(repository, "a") == str(repository / "a")
    assert find_package(repository, "deep/b") == str(repository / "deep" / "b")
    assert find_package(repository, "alias") == str(repository / "a")
    assert list_packages(repository) == ["a", "alias"]
    assert list_packages(None) == list_packages(repository / "missing") == []
    with pytest.raises(InvalidRequest, match="--model-repository"):
        find_package(None, "a")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../outside", "a/../../outside", "/etc", "a//b", "a/", ".hidden", "a\0b"),
        *("a\n", "a\\b", "~", "ä", "x" * 201, "way-out", "way-out/", "missing", "no-package"),
        "file",
    ],
)
def test_no_other_folder_is_found(repository: Path, name: str) -> None:
    with pytest.raises((InvalidRequest, ModelNotFound)) as caught:
        find_package(repository, name)
    message = caught.value.message
    assert str(repository.parent) not in message
    if name == "way-out":  # the answer does not reveal whether a folder outside exists
        with pytest.raises(ModelNotFound) as missing:
            find_package(repository, "missing")
        assert message == missing.value.message.replace("missing", name)


def test_invalid_names_of_models_are_refused() -> None:
    check_model_name("tips-v2.b14")
    for name in ("", "a/b", "a b", "-a", "x" * 201, "a\n"):
        with pytest.raises(InvalidRequest):
            check_model_name(name)


def test_a_setting_names_a_source_and_optionally_a_name(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain = ModelSource.from_setting("google/tipsv2-b14@v1", cache)
    assert plain == ModelSource("google/tipsv2-b14@v1", cache=cache)
    assert plain.served_name() == "tipsv2-b14"
    named = ModelSource.from_setting("second=google/tipsv2-b14", cache)
    assert named == ModelSource("google/tipsv2-b14", "second", cache=cache)
    assert named.served_name() == "second"
    joined = ModelSource.from_setting(f"{plain.folder}+google/tipsv2-b14-dpt", cache)
    assert joined.served_name() == "tipsv2-b14-dpt"
    (tmp_path / "a=b").mkdir()
    existing = str(tmp_path / "a=b")
    assert ModelSource.from_setting(existing, cache) == ModelSource(existing, cache=cache)
    assert ModelSource.from_setting("bundled", cache).served_name().startswith("tipserve")


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    sources = [
        ModelSource.from_setting(text, tmp_path)
        for text in ("google/tipsv2-b14", "bundled", "me/tipsv2-b14")
    ]
    with pytest.raises(ValueError, match=r"'tipsv2-b14'.*--model google/.*,other=me/tipsv2-b14"):
        check_names(sources)
    check_names([*sources[:2], ModelSource.from_setting("other=me/tipsv2-b14", tmp_path)])


def program_of(*reports: dict[str, str], then: str = "") -> list[str]:
    """Arguments of a Python that prints these reports and then runs the code."""
    lines = "\n".join(json.dumps(report) for report in reports)
    return ["-c", f"print({lines!r}, flush=True)\n{then}"]


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    """The folder of a checkpoint without weights."""
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    return ModelSource(str(folder), cache=tmp_path / "cache")


@pytest.fixture
def converted(source: ModelSource, tiny_package: ModelPackage) -> Path:
    """The source's package in the cache, as a conversion leaves it."""
    assert source.cache is not None
    key = key_of(content_of(Path(source.folder)), None, ["fp32"])
    folder = PackageCache(source.cache).folder("student", key)
    shutil.copytree(tiny_package.path, folder)
    return folder


def is_running(pid: int) -> bool:
    """A zombie counts as ended: the parent of an orphan may never reap it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (program_of({"error": "no room; make some"}, then="exit(1)"), r"^no room; make some$"),
        (
            program_of(then="raise MemoryError('odd weights')"),
            r"(?s)student ended with status 1; output: .*odd weights",
        ),
        (
            program_of(then="import os; os.kill(os.getpid(), 9)"),
            r"was killed, .*memory.*python -m model convert",
        ),
    ],
    ids=["reported", "crashed", "killed"],
)
def test_a_failed_conversion_gives_its_reason(
    source: ModelSource, program: list[str], message: str
) -> None:
    with pytest.raises(PackageError, match=message):
        run_conversion(source, "student", program)


def test_a_cancelled_conversion_ends_its_program(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import json, os, signal; print(json.dumps({'step': os.getpid()}), flush=True)"
    pids: list[int] = []

    def log(_: str, text: str, *__: object) -> None:
        pids.append(int(text))
        source.cancelled.set()

    monkeypatch.setattr(conversion_module, "_log", log)
    with pytest.raises(Unavailable):
        run_conversion(source, "student", ["-c", f"{code}; signal.pause()"])
    assert not is_running(*pids)


KILLED_SERVER = """
import sys, os, signal
from service.models import conversion
def log(kind, pid, *_):
    print(pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
conversion._log = log
conversion.run_conversion(conversion.ModelSource("any"), "any", ["-c", sys.argv[1]])
"""
FOLLOWER = """
import json, os
from model.conversion.commands import _end_with_stdin
print(json.dumps({"step": os.getpid()}), flush=True)
_end_with_stdin()
"""


def test_a_conversion_does_not_outlive_a_killed_server() -> None:
    command = [sys.executable, "-c", KILLED_SERVER, FOLLOWER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert server.wait(LIMIT_S) == -signal.SIGKILL
    until = time.monotonic() + LIMIT_S
    while is_running(pid) and time.monotonic() < until:
        threading.Event().wait(0.02)
    assert not is_running(pid)


def test_a_broken_package_in_the_cache_is_converted_again(
    source: ModelSource,
    converted: Path,
    tiny_package: ModelPackage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (converted / "config.json").write_bytes(b"[" * (converted / "config.json").stat().st_size)

    def prepare(*_: object, verify: bool) -> Path:
        if verify:
            shutil.copytree(tiny_package.path, converted, dirs_exist_ok=True)
        return converted

    monkeypatch.setattr(conversion_module, "_prepare", prepare)
    assert open_source(source).path == converted


def test_only_a_checkpoint_of_the_settings_is_converted(
    source: ModelSource, tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions: list[list[str]] = []

    def refuse(_: ModelSource, __: str, program: list[str]) -> None:
        conversions.append(program)
        raise PackageError("no")

    monkeypatch.setattr(conversion_module, "run_conversion", refuse)
    for cache in (None, source.cache):
        packaged = ModelSource(str(tiny_package.path), cache=cache)
        assert open_source(packaged) == open_package(tiny_package.path)
    with pytest.raises(PackageError, match=r"no tipserve\.json"):
        open_source(ModelSource(source.folder))  # as management routes name it
    with pytest.raises(PackageError, match="not a hub id"):
        open_source(ModelSource("tipsv2-b14", cache=source.cache))
    assert not conversions
    with pytest.raises(PackageError):
        open_source(ModelSource.from_setting(source.folder, Path("/cache"), ("fp16", "int8")))
    (arguments,) = conversions
    assert arguments[:5] == ["-m", "model", "prepare", "--cache=/cache", "--report=json"]
    assert "--precision=fp16 --precision=int8" in " ".join(arguments)
    assert arguments[-2:] == ["--", source.folder]
