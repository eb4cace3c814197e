"""Packages are published whole, verified before and after the copy, and can be rolled back."""

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fsspec.core import url_to_fs

from model.manifest import MANIFEST_NAME, ParityEntry, ParityLimits
from model.package import Manifest, ModelPackage, PackageError, open_package, sha256, write_manifest
from model.publication import CURRENT, HISTORY, VERSION, Repository, check_proven

START = datetime(2026, 11, 25, 20, 15, tzinfo=UTC)
LIMIT_S = 60.0

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
    return {path.name for path in repository.folder.iterdir()} - {".lock", HISTORY}


def test_a_version_is_named_by_time_and_content(repository: Repository, make_package: Make) -> None:
    source = make_package("one")
    for path in source.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    folder = publish(repository, source)
    assert VERSION.fullmatch(folder.name)
    digest = sha256(folder / MANIFEST_NAME)
    assert folder.name == f"20261125T201500Z-{digest[:12]}"
    assert (repository.current(), repository.versions()) == (folder.name, [folder.name])
    assert os.readlink(repository.folder / CURRENT) == folder.name
    copied, given = open_package(repository.folder / CURRENT), open_package(source)
    assert copied.manifest == given.manifest
    assert names(repository) == {folder.name, CURRENT}
    # Every user may read it.
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert modes == {0o755, 0o644}


def test_the_same_content_is_published_once(repository: Repository, make_package: Make) -> None:
    source = make_package("one")
    first = publish(repository, source)
    second = publish(repository, make_package("two"), hours=1)
    assert publish(repository, source, hours=2) == first
    assert repository.versions() == [first.name, second.name]
    assert repository.current() == first.name


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_package_of_an_object_store_is_published_once_and_whole(
    repository: Repository, make_package: Make, kind: str
) -> None:
    source = make_package("one")
    url = source.as_uri() if kind == "file" else "memory://bucket/student"
    files, root = url_to_fs(url)
    if kind == "memory":
        files.put(str(source), root, recursive=True)
    folder = repository.publish(url, now=START)
    assert open_package(folder).manifest == open_package(source).manifest
    assert folder.name.endswith(sha256(source / MANIFEST_NAME)[:12])
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert modes == {0o755, 0o644}
    # The manifest alone tells that nothing has to be copied.
    weights = f"{root}/onnx/vision_model.onnx"
    files.rm(weights)
    assert repository.publish(url, now=START + timedelta(hours=1)) == folder
    shutil.rmtree(folder)
    with pytest.raises(
        PackageError, match=r"student|package-one.*vision_model.onnx cannot be copi"
    ):
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
        ("oci://bucket/student", "tipserve\\[stores\\]"),
    ],
)
def test_a_store_that_has_no_package_is_named(
    repository: Repository, url: str, reason: str
) -> None:
    with pytest.raises(PackageError, match=reason):
        repository.publish(url)
    assert not repository.folder.exists()


def test_publishing_removes_no_version(repository: Repository, make_package: Make) -> None:
    folders = [publish(repository, make_package(f"p{hours}"), hours) for hours in range(12)]
    assert repository.versions() == [folder.name for folder in folders]


def test_prune_keeps_the_newest_the_linked_and_those_in_service(
    repository: Repository, make_package: Make
) -> None:
    folders = [
        publish(repository, make_package(name), hours) for hours, name in enumerate("abcdef")
    ]
    first, second, third, fourth, fifth, sixth = (folder.name for folder in folders)
    assert repository.roll_back(fourth) == folders[3]
    # A link made where the volume was mounted elsewhere.
    (repository.folder / "serving").symlink_to(f"/models/{first}")
    (repository.folder / "strange").symlink_to("/")
    with pytest.raises(ValueError, match="'current' is no version such as 2026"):
        repository.prune(keep=1, in_service=["current"])
    assert len(repository.versions()) == 6
    assert repository.prune(keep=2, in_service=[third, "20250101T000000Z-0123456789ab"]) == [second]
    assert repository.versions() == [first, third, fourth, fifth, sixth]
    (repository.folder / "serving").unlink()
    assert repository.prune(keep=1, in_service=[]) == [first, third, fifth]
    assert names(repository) == {fourth, sixth, CURRENT, "strange"}
    with pytest.raises(ValueError, match="--keep must be at least 1"):
        repository.prune(keep=0, in_service=[])


def test_a_version_that_cannot_be_removed_whole_is_not_listed(
    repository: Repository, make_package: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (publish(repository, make_package(name), h) for h, name in enumerate("ab"))
    remove = os.rmdir

    def held_open(path: str | Path, **options: Any) -> None:
        if path == "onnx":
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        remove(path, **options)

    monkeypatch.setattr(os, "rmdir", held_open)
    assert repository.prune(keep=1, in_service=[]) == [first.name]
    assert repository.versions() == [second.name]
    assert list(repository.folder.glob(".*Z-*.new"))
    monkeypatch.undo()
    publish(repository, make_package("e"), hours=4)
    assert not list(repository.folder.glob(".*Z-*.new"))


def test_roll_back_verifies_and_serves_an_earlier_version(
    repository: Repository, make_package: Make
) -> None:
    first, second, third = (
        publish(repository, make_package(name), hours) for hours, name in enumerate("abc")
    )
    assert repository.roll_back() == second
    assert repository.roll_back() == first
    with pytest.raises(PackageError, match=f"no version before {first.name}"):
        repository.roll_back()
    assert repository.roll_back(third.name) == third
    with pytest.raises(PackageError, match="has no version 'yesterday'"):
        repository.roll_back("yesterday")
    (second / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PackageError, match=r"config\.json"):
        repository.roll_back(second.name)
    assert repository.current() == third.name


def test_roll_back_follows_the_order_of_publication(
    repository: Repository, make_package: Make
) -> None:
    sources = [make_package(name) for name in "abcd"]
    folders = [publish(repository, source) for source in sources]  # all in one second
    assert publish(repository, sources[1]) == folders[1]
    assert [repository.roll_back() for _ in range(3)] == [folders[n] for n in (3, 2, 0)]
    # A repository of before the order was noted has its names only.
    (repository.folder / HISTORY).unlink()
    by_name = sorted(folders)
    assert repository.roll_back(by_name[2].name) == by_name[2]
    assert repository.roll_back() == by_name[1]


def test_a_rollback_without_versions_is_refused(repository: Repository) -> None:
    with pytest.raises(PackageError, match="there is no repository"):
        repository.roll_back()
    assert not repository.folder.exists()
    repository.folder.mkdir(parents=True)
    with pytest.raises(PackageError, match="no version before any"):
        repository.roll_back()


def test_a_broken_package_and_a_broken_copy_change_nothing(
    repository: Repository, make_package: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(source: Path, target: Path) -> None:
        content = bytearray(source.read_bytes())
        if source.name == "config.json":
            content[-1] ^= 1
        target.write_bytes(content)

    good = publish(repository, make_package("good"))
    bad, whole = make_package("bad"), make_package("whole")
    torn(bad / "config.json", bad / "config.json")
    with pytest.raises(PackageError, match="SHA-256"):
        publish(repository, bad, hours=1)
    monkeypatch.setattr(shutil, "copyfile", torn)
    with pytest.raises(PackageError, match="SHA-256"):
        publish(repository, whole, hours=1)
    assert names(repository) == {good.name, CURRENT}
    assert repository.current() == good.name


def test_a_version_appears_whole(
    repository: Repository, make_package: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = publish(repository, make_package("old"))
    new, copy = make_package("new"), shutil.copyfile
    seen: list[tuple[list[str], str | None]] = []

    def watched(source: Path, target: Path) -> None:
        copy(source, target)
        seen.append((repository.versions(), repository.current()))

    monkeypatch.setattr(shutil, "copyfile", watched)
    publish(repository, new, hours=1)
    assert len(seen) > 3
    assert all(state == ([old.name], old.name) for state in seen)


def test_leftovers_of_a_dead_process_are_removed(
    repository: Repository, make_package: Make
) -> None:
    left = repository.folder / ".20261125T190000Z-0123456789ab.new"
    left.mkdir(parents=True)
    (left / "config.json").touch()
    (repository.folder / ".current.new").symlink_to("nowhere")
    folder = publish(repository, make_package("one"))
    assert names(repository) == {folder.name, CURRENT}


def test_one_publication_at_a_time(
    repository: Repository, make_package: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, is_inside, may_go_on = shutil.copyfile, threading.Event(), threading.Event()

    def slow(source: Path, target: Path) -> None:
        is_inside.set()
        assert may_go_on.wait(LIMIT_S)
        copy(source, target)

    first, second = make_package("first"), make_package("second")
    monkeypatch.setattr(shutil, "copyfile", slow)
    threads = [threading.Thread(target=publish, args=(repository, first))]
    threads[0].start()
    assert is_inside.wait(LIMIT_S)
    threads.append(threading.Thread(target=publish, args=(repository, second, 1)))
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    may_go_on.set()
    for thread in threads:
        thread.join(LIMIT_S)
    assert len(repository.versions()) == 2
    assert repository.current() == repository.versions()[-1]


def entry(file: str, precision: str = "fp32", difference: float = 0.1) -> ParityEntry:
    limits = ParityLimits(max_abs_diff=0.5)
    fields = {"file": file, "runtime": "onnxruntime", "precision": precision, "sizes": []}
    return ParityEntry.model_validate(
        {**fields, "reference": "torch", "max_abs_diff": difference, "limits": limits}
    )


VISION, TEXT = "onnx/vision_model.onnx", "onnx/text_model.onnx"


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], f"{TEXT} of 'tiny' was never compared"),
        ([entry(TEXT)], f"{VISION} of 'tiny' was never compared"),
        ([entry(VISION), entry(TEXT), entry(TEXT, difference=0.6)], f"{TEXT} .* differs"),
        ([entry(TEXT, "bf16", 0.6)], f"{TEXT} of 'tiny' was never compared"),
    ],
)
def test_a_graph_without_passed_parity_is_refused(
    entries: list[ParityEntry], reason: str, repository: Repository, make_package: Make
) -> None:
    folder = make_package("one")
    manifest = open_package(folder).manifest.model_copy(update={"parity": entries})
    write_manifest(folder, manifest)
    with pytest.raises(PackageError, match=reason):
        publish(repository, folder)
    assert not repository.folder.exists()


def test_a_failed_hint_and_a_failed_reduced_head_do_not_prevent_publication(
    tiny_package: ModelPackage,
) -> None:
    head = "onnx/segmentation_model_fp16.onnx"
    entries = [entry(VISION), entry(TEXT), entry(VISION, "bf16", 0.6), entry(head, "fp16", 0.6)]
    manifest: Manifest = tiny_package.manifest
    files = {**manifest.files, head: manifest.files[VISION]}
    check_proven(manifest.model_copy(update={"parity": entries, "files": files}))
