"""Packages are published whole, and verified before and after the copy."""

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from model.manifest import MANIFEST_NAME, TORCH_FILE, ParityEntry, ParityLimits
from model.package import ModelPackage, PackageError, open_package, sha256, write_manifest
from model.publication import CURRENT, Repository, check_proven

START = datetime(2026, 11, 25, 20, 15, tzinfo=UTC)
Make = Callable[[str], Path]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models" / "student")


@pytest.fixture
def make_package(tiny_package: ModelPackage, tmp_path: Path) -> Make:
    """Makes copies of the tiny package with different content."""

    def make(name: str) -> Path:
        folder = tmp_path / f"package-{name}"
        shutil.copytree(tiny_package.path, folder)
        (folder / "README.md").write_text(f"# {name}\n", encoding="utf-8")
        return write_manifest(folder, tiny_package.manifest).path

    return make


def publish(repository: Repository, source: Path, hours: int = 0) -> Path:
    return repository.publish(source, now=START + timedelta(hours=hours))


def names(repository: Repository) -> set[str]:
    return {path.name for path in repository.folder.iterdir()} - {".lock"}


def test_a_version_is_named_by_time_and_content_and_published_once(
    repository: Repository, make_package: Make
) -> None:
    source = make_package("one")
    for path in source.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    left = repository.folder / ".20261125T190000Z-0123456789ab.new"  # of a dead process
    left.mkdir(parents=True)
    (repository.folder / ".current.new").symlink_to("nowhere")
    first = publish(repository, source)
    assert first.name == f"20261125T201500Z-{sha256(first / MANIFEST_NAME)[:12]}"
    assert os.readlink(repository.folder / CURRENT) == repository.current() == first.name
    assert names(repository) == {first.name, CURRENT}
    assert open_package(repository.folder / CURRENT).manifest == open_package(source).manifest
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (first, *first.rglob("*"))}
    assert modes == {0o755, 0o644}  # every user may read it
    second = publish(repository, make_package("two"), hours=1)
    assert publish(repository, source, hours=2) == first
    assert (repository.versions(), repository.current()) == ([first.name, second.name], first.name)


def test_a_package_of_an_object_store_is_published_once_and_whole(
    repository: Repository, make_package: Make
) -> None:
    source, url = make_package("one"), "memory://bucket/student"
    (source / TORCH_FILE).unlink()  # as in a wheel
    files, root = url_to_fs(url)
    files.put(str(source), root, recursive=True)
    folder = repository.publish(url, now=START)
    assert open_package(folder).manifest == open_package(source).manifest
    weights = f"{root}/onnx/vision_model.onnx"
    files.rm(weights)
    # The manifest alone tells that nothing has to be copied.
    assert repository.publish(url, now=START + timedelta(hours=1)) == folder
    shutil.rmtree(folder)
    with pytest.raises(PackageError, match=r"onnx/vision_model.onnx cannot be copied"):
        repository.publish(url)
    files.pipe_file(weights, b"another graph")
    with pytest.raises(PackageError, match="13 bytes, its manifest says"):
        repository.publish(url)
    assert names(repository) == {CURRENT}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://bucket/none", "none/tipserve.json cannot be copied: FileNotFoundError"),
        ("s4://bucket/student", "Protocol not known: s4"),
        ("oci://bucket/student", r"pip install -e '\.\[stores\]'"),
    ],
)
def test_a_store_without_a_package_is_named(repository: Repository, url: str, reason: str) -> None:
    with pytest.raises(PackageError, match=reason):
        repository.publish(url)
    assert not repository.folder.exists()


def test_a_version_appears_whole_and_a_broken_one_never(
    repository: Repository, make_package: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = publish(repository, make_package("good")), make_package("bad")
    copy = LocalFileSystem.get_file

    def torn(files: LocalFileSystem, source: str, target: str) -> None:
        copy(files, source, target)
        assert (repository.versions(), repository.current()) == ([good.name], good.name)
        if source.endswith("config.json"):
            Path(target).write_bytes(b"{" + Path(target).read_bytes()[1:-1] + b" ")

    monkeypatch.setattr(LocalFileSystem, "get_file", torn)
    with pytest.raises(PackageError, match="SHA-256"):
        publish(repository, bad, hours=1)
    assert names(repository) == {good.name, CURRENT}
    assert repository.current() == good.name


def entry(file: str, precision: str = "fp32", difference: float = 0.1) -> ParityEntry:
    limits = ParityLimits(max_abs_diff=0.5)
    fields = {"file": file, "runtime": "onnxruntime", "precision": precision, "sizes": []}
    return ParityEntry.model_validate(
        {**fields, "reference": "torch", "max_abs_diff": difference, "limits": limits}
    )


VISION, TEXT = "onnx/vision_model.onnx", "onnx/text_model.onnx"
HEAD = "onnx/segmentation_model_fp16.onnx"


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], f"{TEXT} of 'tiny' was never compared"),
        ([entry(TEXT)], f"{VISION} of 'tiny' was never compared"),
        ([entry(VISION), entry(TEXT), entry(TEXT, difference=0.6)], f"{TEXT} .* differs"),
        ([entry(TEXT, "bf16", 0.6)], f"{TEXT} of 'tiny' was never compared"),
        ([entry(VISION), entry(TEXT)], f"{HEAD} of 'tiny' was never compared"),
        # A failed hint, and a failed head in less than float32, are not served.
        ([entry(VISION), entry(TEXT), entry(VISION, "bf16", 0.6), entry(HEAD, "fp16", 0.6)], None),
    ],
)
def test_a_graph_without_passed_parity_is_refused(
    tiny_package: ModelPackage, entries: list[ParityEntry], reason: str | None
) -> None:
    files = tiny_package.manifest.files
    if reason is None or f"{HEAD} " in reason:
        files = {**files, HEAD: files[VISION]}
    manifest = tiny_package.manifest.model_copy(update={"parity": entries, "files": files})
    with pytest.raises(PackageError, match=reason) if reason else nullcontext():
        check_proven(manifest)
