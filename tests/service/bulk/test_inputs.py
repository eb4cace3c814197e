"""Inputs are found, split into parts and read; unreadable images do not stop the job."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bulk.inputs import Columns, InputError, InputImage, find_inputs, read_part


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "sub/c.webp", ".hidden.jpg", "notes.txt", "_errors/x.jpg"):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path / "tree"


def paths(tree: Path, *named: str, lines: tuple[str, ...] = ()) -> list[str]:
    inputs = find_inputs(named, lines, 2)
    found = [path for part in inputs.parts for path in part.paths]
    return [str(Path(path).relative_to(tree)) for path in found]


def test_a_folder_is_read_in_order_without_hidden_files(tree: Path) -> None:
    assert paths(tree, str(tree)) == ["a.PNG", "b.jpg", "sub/c.webp"]


def test_patterns_lists_and_names_give_files_too(tree: Path) -> None:
    assert paths(tree, f"{tree}/**/*.webp") == ["sub/c.webp"]
    lines = (f"{tree}/b.jpg\n", "\n", f"{tree}/sub\n")
    assert paths(tree, "-", lines=lines) == ["b.jpg", "sub/c.webp"]
    assert paths(tree, f"{tree}/notes.txt") == ["notes.txt"], "a named file needs no suffix"


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
    assert inputs.num_images == 3
    for name, num_rows in (("a", 5), ("b", 2)):
        pq.write_table(pa.table({"image": [b"x"] * num_rows}), tmp_path / f"{name}.parquet")
    inputs = find_inputs([f"{tmp_path}/*.parquet"], [], 3)
    ranges = [(Path(part.paths[0]).stem, part.start, part.stop) for part in inputs.parts]
    assert ranges == [("a", 0, 3), ("a", 3, 5), ("b", 0, 2)]
    assert inputs.num_images == 7
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(b"")
    shards = find_inputs([f"{tmp_path}/*.tar"], [], 3).parts
    assert [part.kind for part in shards] == ["tar", "tar"]


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        (["missing"], "missing does not exist"),
        (["*.gif"], "*.gif does not exist"),
        (["empty"], "No images found in empty"),
        (["a.jpg", "b.tar"], "several kinds"),
        (["broken.parquet"], "cannot be read as Parquet"),
    ],
)
def test_invalid_inputs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("a.jpg", "b.tar", "broken.parquet"):
        Path(name).write_bytes(b"x")
    with pytest.raises(InputError, match=sentence.replace("*", r"\*")):
        find_inputs(named, [], 3)


def read(path: Path, part_items: int = 100, **columns: str) -> list[list[InputImage]]:
    inputs = find_inputs([str(path)], [], part_items)
    return [list(read_part(part, Columns(**columns))) for part in inputs.parts]


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
    for named in (tmp_path, tmp_path / "*.jpg"):
        ((file, link, pipe),) = read(named)
        assert file.data == b"a"
        assert link.problem == "The file cannot be read: No such file or directory."
        assert pipe.problem == "This is not a regular file."


@pytest.mark.parametrize("group", [1, 2, 100])
def test_every_row_is_read_once_for_any_row_groups(tmp_path: Path, group: int) -> None:
    rows = [b"%d" % i for i in range(7)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet", row_group_size=group)
    items = [item for part in read(tmp_path, 3) for item in part]
    assert [item.data for item in items] == rows
    assert [item.key for item in items] == [f"{tmp_path}/a.parquet:{i}" for i in range(7)]


def test_rows_may_contain_paths_and_structs(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"on disk")
    table = pa.table(
        {
            "image": pa.array([{"bytes": b"inside", "path": None}, {"path": "x.bin"}, None]),
            "id": [7, 8, 9],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    ((first, second, third),) = read(tmp_path / "a.parquet", image="image", key="id")
    assert (first.key, first.data) == ("7", b"inside")
    assert (second.key, second.data) == ("8", b"on disk")
    assert third.data is None


def test_a_missing_column_ends_the_job(tmp_path: Path) -> None:
    pq.write_table(pa.table({"photo": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column 'image'.*photo"):
        read(tmp_path)


def test_a_shard_is_read_sample_by_sample(tmp_path: Path) -> None:
    members = (("a/0.json", b"{}"), ("a/0.seg.jpg", b"0"), ("a/1.txt", b"t"), ("a/2.png", b"2"))
    ((first, second, third),) = read(shard(tmp_path / "s.tar", *members))
    assert (first.key, first.data) == ("a/0", b"0")
    assert (second.key, second.problem) == ("a/1", "The sample contains no image.")
    assert (third.key, third.data) == ("a/2", b"2")


def test_a_truncated_shard_keeps_its_first_samples(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", ("0.jpg", b"0" * 600), ("1.jpg", b"1" * 600))
    path.write_bytes(path.read_bytes()[:2000])
    ((first, *_, last),) = read(path)
    assert (first.key, first.data) == ("0", b"0" * 600)
    assert last.problem == "The shard is damaged from here on."
