"""The data folder: fetching, the sprite bank and the source of each split."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
from training.data.scenes import Split
from training.data.sprites import SpriteBank

SPLITS: tuple[Split, ...] = ("train", "val")


def test_viral_licences_and_the_unseen_style_are_not_trainable() -> None:
    for art in ART_SETS:
        if art.licence.startswith("GPL") or "SA" in art.licence or "fluent" in art.package:
            assert not art.trainable, art


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


def test_photos_and_keywords_keep_the_splits_apart(data_folder: DataFolder) -> None:
    sources = [data_folder.source(s, styles=("noto",), names=seen_names()) for s in SPLITS]
    train, val = ({photo.phrase for photo in source.photos} for source in sources)
    assert train
    assert val
    assert not train & val
    unseen = {concept.name for concept in all_concepts() if concept.is_unseen}
    keywords = data_folder.keywords()
    assert set(keywords) == {concept.name for concept in all_concepts()}
    assert keywords["dog"] == ("dog", "kind of dog")
    assert not unseen & {word for words in keywords.values() for word in words}


def test_a_bank_is_kept_in_memory_once_until_its_file_changes(
    sprite_bank: SpriteBank, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="python -m training data --folder"):
        DataFolder(path=tmp_path).bank()
    sprite_bank.save(tmp_path / "sprites.npz")
    bank = DataFolder(path=tmp_path).bank()
    assert DataFolder(path=tmp_path).bank() is bank
    replace(sprite_bank, rgba_MSS4=sprite_bank.rgba_MSS4 // 2).save(tmp_path / "sprites.npz")
    assert DataFolder(path=tmp_path).bank().rgba_MSS4.max() == 127


def test_stamps_are_read_in_place(data_folder: DataFolder, tmp_path: Path) -> None:
    data = DataFolder(path=tmp_path)
    data.art.stamps.mkdir(parents=True)
    data.photos.parent.mkdir(parents=True, exist_ok=True)
    data.photos.symlink_to(data_folder.photos)
    image = np.zeros((20, 20, 4), np.uint8)
    image[4:16, 4:16] = (200, 90, 30, 255)
    for name, caption in (("a", "A dog."), ("b", "An airplane"), ("c", "Some old thing")):
        Image.fromarray(image).save(data.art.stamps / f"{name}.png")
        (data.art.stamps / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")
    source = data.stamp_source()
    assert source is not None
    assert source.names == {"dog", "airplane"}
    assert source.split == "test"


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
    """A log of the calls of stand-ins; the path holds only these and a shell's own tools."""
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
    assert "--ignore-scripts" in asked[0]  # packages run no code of their own
    assert (folder / "npm/node_modules").is_dir()
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


def test_a_package_that_apt_does_not_know_is_named(
    calls: Path, install: Install, tmp_path: Path
) -> None:
    install(apt_get='echo "apt-get $*" >> "$CALLS"; exit 100', dpkg_deb=DPKG)
    with pytest.raises(FileNotFoundError, match="cannot download openclipart-svg"):
        fetch_debian(tmp_path)
    assert calls.read_text().splitlines().count("apt-get update") == 1


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
