"""Inputs are found, split into parts and read; unreadable images do not stop the job."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.core import url_to_fs
from fsspec.implementations.memory import MemoryFileSystem

from model.stores import StoreError
from tipserve_cli.bulk.inputs import Columns, InputImage, Part, Skipped, find_inputs, read_part
from tipserve_cli.engine import UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "sub/c.webp", ".hidden.jpg", "notes.txt", "_errors/x.jpg"):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path / "tree"


def upload(folder: Path, url: str) -> None:
    files, root = url_to_fs(url)
    files.put(str(folder), root, recursive=True)


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("", ["a.PNG", "b.jpg", "sub/c.webp"]),
        ("/", ["a.PNG", "b.jpg", "sub/c.webp"]),
        ("/*.jpg", ["b.jpg"]),
        ("/**/*.webp", ["sub/c.webp"]),
        ("/sub", ["sub/c.webp"]),
        ("/notes.txt", ["notes.txt"]),  # a named file needs no suffix
    ],
)
def test_files_and_objects_are_found_alike(
    tree: Path, store: str, monkeypatch: pytest.MonkeyPatch, named: str, found: list[str]
) -> None:
    upload(tree, store)
    monkeypatch.chdir(tree.parent)
    for place in (str(tree), "tree", store):
        inputs = find_inputs([f"{place}{named}"], [], 2)
        assert [path for part in inputs.parts for path in part.paths] == [
            f"{place}/{name}" if place != store else f"{inputs_root(store)}/{name}"
            for name in found
        ]
        assert find_inputs(["-"], [f"{place}{named}\n", "\n"], 2) == inputs


def inputs_root(store: str) -> str:
    """The store's own way to write a URL."""
    files, root = url_to_fs(store)
    return str(files.unstrip_protocol(root))


def test_the_digest_follows_names_and_sizes(tree: Path) -> None:
    before = find_inputs([str(tree)], [], 2).digest
    assert find_inputs([str(tree)], [], 5).digest == before
    (tree / "b.jpg").write_bytes(b"longer")
    assert find_inputs([str(tree)], [], 2).digest != before


def test_files_rows_and_shards_are_split_into_parts_without_gaps(
    tree: Path, tmp_path: Path
) -> None:
    inputs = find_inputs([str(tree)], [], 2)
    assert [(part.number, len(part.paths)) for part in inputs.parts] == [(0, 2), (1, 1)]
    for name, num_rows in (("a", 5), ("b", 2)):
        pq.write_table(pa.table({"image": [b"x"] * num_rows}), tmp_path / f"{name}.parquet")
    inputs = find_inputs([f"{tmp_path}/*.parquet"], [], 3)
    ranges = [(Path(part.paths[0]).stem, part.start, part.stop) for part in inputs.parts]
    assert ranges == [("a", 0, 3), ("a", 3, 5), ("b", 0, 2)]
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(b"")
    shards = find_inputs([f"{tmp_path}/*.tar"], [], 3)
    assert (shards.kind, len(shards.parts)) == ("tar", 2)


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        (["missing"], "missing does not exist"),
        (["*.gif"], r"\*.gif does not exist"),
        (["empty"], "No images found in empty"),
        (["a.jpg", "b.tar"], "several kinds"),
        (["broken.parquet"], "cannot be read as Parquet"),
        (["memory://bucket/none"], "^memory://bucket/none does not exist"),
        (["s4://bucket/photos"], "s4://bucket/photos: Protocol not known"),
        (["oci://bucket/photos"], r"pip install -e '\.\[stores\]'"),
    ],
)
def test_invalid_inputs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("a.jpg", "b.tar", "broken.parquet"):
        Path(name).write_bytes(b"x")
    with pytest.raises((StoreError, UserError), match=sentence):
        find_inputs(named, [], 3)


def content(image: InputImage) -> bytes | str:
    """What is read, or why it cannot be."""
    try:
        return image.read()
    except Skipped as error:
        return str(error)


def read(path: Path | str, part_items: int = 100, **columns: str) -> list[InputImage]:
    inputs = find_inputs([str(path)], [], part_items)
    return [image for part in inputs.parts for image in read_part(part, Columns(**columns))]


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_pipes_and_broken_links_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "c.jpg")
    (tmp_path / "d.jpg").symlink_to("a.jpg")
    for named in (tmp_path, tmp_path / "*.jpg"):
        assert [content(item) for item in read(named)] == [
            b"a",
            "The file cannot be read: No such file or directory.",
            "This is not a regular file.",
            b"a",
        ]


@pytest.mark.parametrize("group", [1, 2, 100])
def test_every_row_is_read_once_for_any_row_groups(tmp_path: Path, group: int) -> None:
    rows = [b"%d" % i for i in range(7)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet", row_group_size=group)
    items = read(tmp_path, 3)
    assert [content(item) for item in items] == rows
    assert [item.key for item in items] == [f"{tmp_path}/a.parquet:{i}" for i in range(7)]
    assert {item.source for item in items} == {f"{tmp_path}/a.parquet"}


def test_rows_may_contain_paths_and_structs_but_no_addresses_of_the_web(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"on disk")
    values = [(b"inside", None), (None, "x.bin"), (None, None), (None, "http://127.0.0.1:9/a.jpg")]
    images = pa.array([{"bytes": data, "path": path} for data, path in values])
    pq.write_table(pa.table({"image": images, "id": [7, 8, 9, 10]}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", image="image", key="id")
    assert [(item.key, content(item)) for item in found] == [
        ("7", b"inside"),
        ("8", b"on disk"),
        ("9", "The row contains neither bytes nor a path."),
        ("10", "Images are not downloaded from web servers."),
    ]
    with pytest.raises(UserError, match=r"no column 'photo'.*image"):
        read(tmp_path / "a.parquet", image="photo")


def test_a_shard_is_read_sample_by_sample(tmp_path: Path) -> None:
    members = (("a/0.json", b"{}"), ("a/0.seg.jpg", b"0"), ("a/1.txt", b"t"), ("a/2.png", b"2"))
    found = read(shard(tmp_path / "s.tar", *members))
    assert [(item.key, content(item)) for item in found] == [
        ("a/0", b"0"),
        ("a/1", "The sample contains no image."),
        ("a/2", b"2"),
    ]
    assert {item.source for item in found} == {f"{tmp_path}/s.tar"}


def test_objects_are_read_as_files_are_also_from_a_truncated_shard(
    tmp_path: Path, store: str
) -> None:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for number in range(20):
        (folder / "images" / f"{number:02}.jpg").write_bytes(b"%d" % number)
    table = pa.table({"image": [{"bytes": b"x"}, {"path": "images/03.jpg"}, {"path": "none"}]})
    pq.write_table(table, folder / "a.parquet")
    whole = shard(folder / "s.tar", ("0.jpg", b"0" * 600), ("1.jpg", b"1" * 600)).read_bytes()
    (folder / "cut.tar").write_bytes(whole[:2000])
    upload(folder, store)
    for name in ("images", "a.parquet", "s.tar", "cut.tar"):
        expected, found = read(folder / name), read(f"{store}/{name}")
        assert [content(item)[:25] for item in found] == [content(item)[:25] for item in expected]
    first, *_, last = found
    assert (first.key, first.content) == ("0", b"0" * 600)
    assert content(last) == "The shard is damaged from here on."


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_missing_object_is_skipped_and_a_failing_store_ends_the_job(
    tree: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(tree, store)
    (part,) = find_inputs([store], [], 5).parts
    MemoryFileSystem.store.pop("/bucket/job/b.jpg")
    first, missing, _ = read_part(part, Columns())
    problem = "The file cannot be read: there is no such object."
    assert (content(first), content(missing)) == (b"x", problem)

    def refuse(*_: object) -> None:
        raise PermissionError("no access")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(UserError, match=r"a.PNG: PermissionError: no access"):
        first.read()


def test_a_shard_that_a_store_stops_sending_is_not_taken_for_a_damaged_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError("reset")

    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_: Broken(b"x"))
    part = Part(number=0, paths=("memory://bucket/s.tar",))
    with pytest.raises(UserError, match=r"s.tar: OSError: reset"):
        list(read_part(part, Columns()))
