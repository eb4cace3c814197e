"""Fetching, with stand-ins for npm, apt-get and dpkg-deb on the path: no network, no root."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.folder import (
    DEBIAN_PACKAGES,
    NPM_PACKAGES,
    STAMPS_PACKAGE,
    fetch,
    fetch_debian,
    fetch_npm,
)

NPM = 'echo "npm $*" >> "$CALLS"; mkdir -p node_modules'
# Knows no package before `update`, as a fresh container does.
APT = """echo "apt-get $*" >> "$CALLS"
if [ "$1" = update ]; then touch "$CALLS.updated"; exit 0; fi
[ -e "$CALLS.updated" ] || exit 100
echo archive > "$2_1.0_all.deb"
"""
DPKG = 'echo "dpkg-deb $*" >> "$CALLS"; mkdir -p "$3/usr/share" && cp "$2" "$3/usr/share/"'

Install = Callable[..., None]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of what the stand-ins were asked; the path has nothing else but a shell's own tools."""
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("CALLS", str(log))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return log


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Put stand-ins on the path."""

    def write(**programs: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, script in programs.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
            path.chmod(0o755)

    return write


def test_everything_is_fetched_once(calls: Path, install: Install, tmp_path: Path) -> None:
    install(npm=NPM, apt_get=APT, dpkg_deb=DPKG)
    folder = tmp_path / "data"
    fetch(folder)
    asked = calls.read_text().splitlines()
    assert asked[0].startswith("npm install")
    assert asked.count("apt-get update") == 1
    manifest = json.loads((folder / "npm/package.json").read_text("utf-8"))
    assert manifest["dependencies"] == NPM_PACKAGES
    assert manifest["private"]
    for package in DEBIAN_PACKAGES:
        assert (folder / f"debian/usr/share/{package}_1.0_all.deb").exists()
    fetch(folder)
    again = calls.read_text().splitlines()[len(asked) :]
    assert not [line for line in again if line.startswith("apt-get")]


def test_stamps_are_fetched_only_when_asked_for(
    calls: Path, install: Install, tmp_path: Path
) -> None:
    install(npm=NPM, apt_get=APT, dpkg_deb=DPKG)
    fetch(tmp_path / "without")
    assert STAMPS_PACKAGE not in calls.read_text()
    fetch(tmp_path / "with", with_stamps=True)
    assert STAMPS_PACKAGE in calls.read_text()


def test_npm_runs_no_scripts_of_packages(calls: Path, install: Install, tmp_path: Path) -> None:
    install(npm=NPM)
    fetch_npm(tmp_path)
    assert "--ignore-scripts" in calls.read_text()
    assert (tmp_path / "npm/node_modules").is_dir()


def test_versions_are_exact() -> None:
    assert all(version.replace(".", "").isdigit() for version in NPM_PACKAGES.values())


def test_a_package_that_apt_does_not_know_is_named(
    calls: Path, install: Install, tmp_path: Path
) -> None:
    install(apt_get='echo "apt-get $*" >> "$CALLS"; exit 100', dpkg_deb=DPKG)
    with pytest.raises(FileNotFoundError, match="cannot download openclipart-svg"):
        fetch_debian(tmp_path)
    assert calls.read_text().splitlines().count("apt-get update") == 1


def test_an_install_that_fails_is_an_error(calls: Path, install: Install, tmp_path: Path) -> None:
    install(npm="exit 1")
    with pytest.raises(subprocess.CalledProcessError):
        fetch_npm(tmp_path)
    assert not calls.read_text()


@pytest.mark.parametrize(
    ("step", "advice"),
    [(fetch_npm, "npm is needed.*Node.js"), (fetch_debian, "apt-get is needed.*by hand")],
)
def test_a_missing_program_comes_with_advice(
    step: Callable[[Path], None], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=advice):
        step(tmp_path)
