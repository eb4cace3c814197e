"""A package opens only as its manifest says; otherwise the message says what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model import package as package_module
from model.manifest import Manifest
from model.package import PackageError, open_package, write_manifest

DRAFT = Manifest(
    name="tiny",
    variant="tiny/14",
    embed_dim=32,
    native_size=56,
    min_size=14,
    max_size=112,
    shape_buckets=[(56, 56)],
    temperature=0.01,
    outputs=["patches"],
    licence="Apache-2.0",
)


# The field `ir_version`: as short as a graph can be.
GRAPH = b"\x08\x0a"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package of two files with a manifest."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "vision_model.onnx").write_bytes(GRAPH)
    (tmp_path / "config.json").write_bytes(b"{}")
    write_manifest(tmp_path, DRAFT)
    return tmp_path


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest as a text, past our own checks."""
    path = folder / "tipserve.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_a_written_package_opens(folder: Path) -> None:
    opened = open_package(folder)
    assert set(opened.manifest.files) == {"config.json", "onnx/vision_model.onnx"}
    assert opened.file("onnx/vision_model.onnx").read_bytes() == GRAPH
    assert open_package(str(folder)).manifest == opened.manifest


def test_writing_twice_gives_the_same_manifest(folder: Path) -> None:
    before = (folder / "tipserve.json").read_bytes()
    write_manifest(folder, DRAFT)
    assert (folder / "tipserve.json").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "onnx",
        "tipserve.json",
    ]


def test_a_tampered_file_of_the_same_length_is_found(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"[]")
    with pytest.raises(PackageError, match=r"config\.json.*SHA-256.*copy the package again"):
        open_package(folder)
    assert open_package(folder, verify=False).manifest.name == "tiny"


def test_a_truncated_file_is_found_without_hashing(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"{")
    with pytest.raises(PackageError, match=r"has 1 bytes, its manifest says 2"):
        open_package(folder, verify=False)


def test_a_missing_file_is_found(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(PackageError, match=r"lacks 'config\.json'.*export it again"):
        open_package(folder, verify=False)


def test_a_wrong_digest_is_found(folder: Path) -> None:
    change_manifest(folder, lambda d: d["files"]["config.json"].update(sha256="0" * 64))
    with pytest.raises(PackageError, match="SHA-256"):
        open_package(folder)


def test_an_unknown_key_is_refused(folder: Path) -> None:
    change_manifest(folder, lambda d: d.update(pickle="weights.bin"))
    with pytest.raises(PackageError, match=r"(?s)export the model again.*pickle"):
        open_package(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "onnx/../../outside"])
def test_a_path_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    def add(document: dict[str, Any]) -> None:
        document["files"][name] = document["files"]["config.json"]

    change_manifest(folder, add)
    with pytest.raises(PackageError, match="inside the package"):
        open_package(folder)


def test_a_manifest_without_files_is_refused(folder: Path) -> None:
    change_manifest(folder, lambda d: d.update(files={}))
    with pytest.raises(PackageError, match="lists no files"):
        open_package(folder)


def test_broken_json_is_refused(folder: Path) -> None:
    (folder / "tipserve.json").write_text("{", encoding="utf-8")
    with pytest.raises(PackageError, match="not a manifest"):
        open_package(folder)


def test_a_file_that_is_not_listed_cannot_be_had(folder: Path) -> None:
    (folder / "notes.md").write_bytes(b"# Notes")
    with pytest.raises(PackageError, match=r"no file 'notes\.md'"):
        open_package(folder).file("notes.md")


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("google/tipsv2-b14", "python -m model convert google/tipsv2-b14 FOLDER"),
        ("nowhere", "there is no folder 'nowhere'; use 'bundled'"),
        (Path("no/where"), "there is no folder 'no/where'; .*python -m model convert"),
    ],
)
def test_other_sources_get_advice(source: str | Path, advice: str) -> None:
    with pytest.raises(PackageError, match=advice):
        open_package(source)


def test_a_folder_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no tipserve\.json.*model convert.*training export"):
        open_package(tmp_path)
    with pytest.raises(PackageError, match="is empty"):
        write_manifest(tmp_path, DRAFT)


def test_bundled_is_the_folder_beside_the_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_module, "BUNDLED_FOLDER", folder)
    assert open_package("bundled").path == folder
    monkeypatch.setattr(package_module, "BUNDLED_FOLDER", tmp_path / "absent")
    with pytest.raises(PackageError, match="no bundled model"):
        open_package("bundled")
