"""The data folder: the vocabulary, fetching, the sprite bank and the source of each split."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.art import ART_SETS
from training.data.concepts import all_concepts
from training.data.folder import (
    DEBIAN_PACKAGES,
    NPM_PACKAGES,
    STAMPS_PACKAGE,
    DataFolder,
    fetch,
    fetch_debian,
    fetch_npm,
    seen_names,
)


@pytest.mark.parametrize(
    ("style", "extra", "message"),
    [
        ("fluent-3d", "dog", "training may only use"),
        ("openmoji", "dog", "training may only use"),
        ("stamps", "dog", "training may only use"),
        ("noto", "tiger", r"training may not see \['tiger'\]"),
    ],
)
def test_training_on_held_out_art_and_concepts_is_refused(
    data_folder: DataFolder, style: str, extra: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data_folder.source("train", styles=("noto", style), names=seen_names() | {extra})
    for art in ART_SETS:
        if art.licence.startswith("GPL") or "SA" in art.licence or "fluent" in art.package:
            assert not art.trainable, art


NPM = 'echo "npm $*" >> "$CALLS"; mkdir -p node_modules'
# Knows no package before `update`, as a fresh container does.
APT = """echo "apt-get $*" >> "$CALLS"
if [ "$1" = update ]; then touch "$CALLS.updated"; exit 0; fi
[ -e "$CALLS.updated" ] || exit 100
echo archive > "$2_1.0_all.deb"
"""
DPKG = 'echo "dpkg-deb $*" >> "$CALLS"; mkdir -p "$3/usr/share" && cp "$2" "$3/usr/share/"'


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put stand-ins on the path, which else has a shell's own tools; returns the log of calls."""

    def write(**programs: str) -> Path:
        folder, log = tmp_path / "bin", tmp_path / "calls"
        folder.mkdir()
        log.touch()
        for name, script in programs.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
            path.chmod(0o755)
        monkeypatch.setenv("CALLS", str(log))
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return log

    return write


def test_everything_is_fetched_once(install: Callable[..., Path], tmp_path: Path) -> None:
    calls = install(npm=NPM, apt_get=APT, dpkg_deb=DPKG)
    folder = tmp_path / "data"
    fetch(folder)
    asked = calls.read_text().splitlines()
    assert asked[0].startswith("npm install")
    assert "--ignore-scripts" in asked[0]  # packages run no code of their own
    assert asked.count("apt-get update") == 1
    manifest = json.loads((folder / "npm/package.json").read_text("utf-8"))
    assert manifest["dependencies"] == NPM_PACKAGES
    for package in DEBIAN_PACKAGES:
        assert (folder / f"debian/usr/share/{package}_1.0_all.deb").exists()
    fetch(folder)
    again = calls.read_text().splitlines()[len(asked) :]
    assert not [line for line in again if line.startswith("apt-get")]
    assert STAMPS_PACKAGE not in calls.read_text()
    fetch(folder, with_stamps=True)
    assert STAMPS_PACKAGE in calls.read_text()


def test_a_missing_package_or_program_is_named(
    install: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = install(apt_get='echo "apt-get $*" >> "$CALLS"; exit 100', dpkg_deb=DPKG)
    with pytest.raises(FileNotFoundError, match="cannot download openclipart-svg"):
        fetch_debian(tmp_path)
    assert calls.read_text().splitlines().count("apt-get update") == 1
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"npm is needed.*Node\.js"):
        fetch_npm(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"apt-get is needed.*by hand"):
        fetch_debian(tmp_path)


def test_photos_and_keywords_keep_the_splits_apart(data_folder: DataFolder) -> None:
    source = data_folder.source("train", styles=("noto",), names=seen_names())
    other = data_folder.source("val", styles=("noto",), names=seen_names())
    train, val = ({photo.phrase for photo in one.photos} for one in (source, other))
    assert len(train) * len(val) > 0
    assert not train & val
    unseen = {concept.name for concept in all_concepts() if concept.is_unseen}
    keywords = data_folder.keywords()
    assert keywords["dog"] == ("dog", "kind of dog")
    assert not unseen & {word for words in keywords.values() for word in words}
