"""The same content has the same key; any change of it, or of what is asked for, another."""

import shutil
from pathlib import Path

import pytest

from model.conversion import identity
from model.conversion.identity import content_of, key_of, weight_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_bytes(b"{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def test_where_it_lies_and_what_stands_beside_it_change_nothing(
    folder: Path, tmp_path: Path
) -> None:
    before = content_of(folder)
    (folder / "README.md").write_text("A card.", encoding="utf-8")
    (folder / ".cache").mkdir()
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").touch()
    assert content_of(copy) == before


def test_every_byte_that_is_read_counts(folder: Path) -> None:
    before = content_of(folder)
    (folder / "model.safetensors").write_bytes(b"weightz")
    changed = content_of(folder)
    (folder / "tokenizer.json").write_bytes(b"{}")
    assert len({str(content) for content in (before, changed, content_of(folder))}) == 3


def test_a_file_is_known_by_its_content(folder: Path) -> None:
    assert content_of(folder / "config.json") == {"config.json": content_of(folder)["config.json"]}


def test_what_is_asked_for_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        key_of({"a": 1}, None, ["fp32"]),
        key_of({"a": 2}, None, ["fp32"]),
        key_of({"a": 1}, {"a": 1}, ["fp32"]),
        key_of({"a": 1}, None, ["fp32", "fp16"]),
    }
    assert key_of({"a": 1}, None, ["fp16", "fp32"]) in keys
    monkeypatch.setattr(identity, "EXPORT_FORMAT", 10**6)
    keys.add(key_of({"a": 1}, None, ["fp32"]))
    assert len(keys) == 5


def test_only_weights_weigh(folder: Path) -> None:
    assert weight_bytes(folder) == len(b"weights")
    assert weight_bytes(folder / "model.safetensors") == len(b"weights")
