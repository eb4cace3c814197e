"""The content of a converted package, and errors before anything is written."""

import errno
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors import SafetensorError

from model.conversion.convert import ConversionRequest, convert, licence_of
from model.conversion.errors import CacheError
from model.conversion.source import FolderSource
from model.export import package_writer
from model.graphs import graph_file
from model.manifest import PUBLISHED_ZERO_SHOT
from model.package import ModelPackage, write_manifest

if TYPE_CHECKING:
    from transformers import Tipsv2DptForDensePrediction


def request_(base: Path, **changes: Any) -> ConversionRequest:
    usual: dict[str, Any] = {
        "base": FolderSource(base),
        "dense": None,
        "name": "student",
        "precisions": ("fp32",),
        "provenance": {"source": {"folder": "checkpoint"}},
    }
    return ConversionRequest(**{**usual, **changes})


@pytest.fixture
def contents(tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Contents that would be exported."""
    seen: list[Any] = []

    def take(content: Any, output: Path, *, is_thorough: bool, progress: Any) -> ModelPackage:
        assert not is_thorough
        seen.append(content)
        progress(f"writing {output.name}")
        return tiny_package

    monkeypatch.setattr(package_writer, "write_package", take)
    return seen


def test_a_folder_of_transformers_becomes_a_package(
    contents: list[Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    (base / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# B\n", encoding="utf-8")
    steps: list[str] = []
    convert(request_(base), tmp_path / "out", steps.append)
    (content,) = contents
    draft = content.draft
    assert (draft.name, draft.variant, draft.licence) == ("student", "w32d4", "cc-by-4.0")
    assert draft.zero_shot == PUBLISHED_ZERO_SHOT
    assert draft.provenance["source"] == {"folder": "checkpoint"}
    assert "model.safetensors" in draft.provenance["checkpoint"]["files"]
    assert set(draft.provenance["converted_by"]) >= {"tipserve", "torch", "transformers", "onnx"}
    card = content.card
    assert card.startswith("# student\n")
    assert "source.folder: `checkpoint`" in card
    assert "Licence of the weights: cc-by-4.0." in card
    assert "`jpeg_decode=exact` decodes as the released code does." in card
    assert steps[1:] == [f"reading the weights in {base}", "writing out"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: cc-by-4.0\n---\n", "cc-by-4.0"),
        ("--- \nlanguage: en\nlicense:  'MIT' \ntags: x\n---\n", "MIT"),
        ("---\nlicense:\n---\n", None),
        ("---\nlanguage: en\n---\nlicense: x\n", None),
        ("# B\nlicense: x\n", None),
        ("---" + 300_000 * "\n", None),
        ("---\nlicense: a" + 300_000 * " " + "b\n---\n", f"a{300_000 * ' '}b"),
    ],
    ids=["plain", "quoted", "empty", "below", "none", "lines", "spaces"],
)
def test_the_licence_is_in_the_front_matter_of_a_card_of_any_length(
    card: str, licence: str | None, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert licence_of(tmp_path) == licence


def test_a_package_gets_further_precisions_and_is_otherwise_unchanged(
    contents: list[Any], tiny_package: ModelPackage, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_package.path, tmp_path / "base")
    shutil.copyfile(base / graph_file("vision"), base / graph_file("vision", "fp16"))
    before = write_manifest(base, tiny_package.manifest).manifest
    wanted = request_(base, name="tiny", precisions=("fp32", "int8"))
    convert(wanted, tmp_path / "out", lambda _: None)
    (content,) = contents
    assert content.precisions == ("fp32", "fp16", "int8")
    after = content.draft.model_copy(update={"files": before.files, "parity": before.parity})
    assert after == before
    card = tiny_package.file("README.md").read_text(encoding="utf-8")
    assert content.card == card


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_disk_that_becomes_full_is_a_cache_error(
    error: Exception, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(package_writer, "write_package", fill)
    with pytest.raises(CacheError, match=r"out cannot be written \(.*No space left.*make room"):
        convert(request_(tiny_checkpoint), tmp_path / "out", print)


def test_the_depth_activation_is_recorded_and_kept(
    contents: list[Any],
    tiny_checkpoint: Path,
    tiny_dense: "Tipsv2DptForDensePrediction",
    dense_package: ModelPackage,
    tmp_path: Path,
) -> None:
    heads, package = tmp_path / "heads", tmp_path / "package"
    tiny_dense.save_pretrained(heads)
    dense = FolderSource(heads)
    asked = {"dense": dense, "depth_activation": "linear"}
    convert(request_(tiny_checkpoint, **asked), tmp_path / "out", lambda _: None)
    shutil.copytree(dense_package.path, package)
    provenance = contents[0].draft.provenance
    write_manifest(package, dense_package.manifest.model_copy(update={"provenance": provenance}))
    # Further graphs of the package, whose heads say relu.
    convert(request_(package, dense=dense), tmp_path / "more", lambda _: None)
    again = {"dense": dense, "depth_activation": "relu"}
    convert(request_(package, **again), tmp_path / "other", lambda _: None)
    used = []
    for content in contents:
        origin = content.draft.provenance["checkpoint"]
        assert "model.safetensors" in origin["files"]
        used.append(origin["dense"]["depth_activation"])
        assert content.dense.config.depth_decoder_activation == used[-1]
    assert used == ["linear", "linear", "relu"]
