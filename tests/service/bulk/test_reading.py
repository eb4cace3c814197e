"""Items of parts: files, rows and samples; what cannot be read is an item, too."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bulk.inputs import Columns, InputError, InputImage, find_inputs, read_part


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


def test_a_file_that_has_gone_is_a_bad_item(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (part,) = find_inputs([str(tmp_path)], [], 3).parts
    (tmp_path / "a.jpg").unlink()
    (item,) = read_part(part, Columns())
    assert item.data is None
    assert item.problem.startswith("The file cannot be read")


def test_what_is_no_file_is_a_bad_item_and_nobody_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "c.jpg")
    for named in (tmp_path, tmp_path / "*.jpg"):
        ((file, link, pipe),) = read(named)
        assert file.data == b"a"
        assert link.problem == "The file cannot be read: No such file or directory."
        assert pipe.problem == "This is not a regular file."


@pytest.mark.parametrize("group", [1, 2, 100])
def test_every_row_is_read_once_however_parts_and_groups_lie(tmp_path: Path, group: int) -> None:
    rows = [b"%d" % i for i in range(7)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet", row_group_size=group)
    items = [item for part in read(tmp_path, 3) for item in part]
    assert [item.data for item in items] == rows
    assert [item.key for item in items] == [f"{tmp_path}/a.parquet:{i}" for i in range(7)]


def test_rows_may_hold_paths_and_structs(tmp_path: Path) -> None:
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


def test_a_column_that_is_not_there_ends_the_job(tmp_path: Path) -> None:
    pq.write_table(pa.table({"photo": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column 'image'.*photo"):
        read(tmp_path)


def test_a_shard_is_read_sample_by_sample(tmp_path: Path) -> None:
    members = (("a/0.json", b"{}"), ("a/0.seg.jpg", b"0"), ("a/1.txt", b"t"), ("a/2.png", b"2"))
    ((first, second, third),) = read(shard(tmp_path / "s.tar", *members))
    assert (first.key, first.data) == ("a/0", b"0")
    assert (second.key, second.problem) == ("a/1", "The sample contains no image.")
    assert (third.key, third.data) == ("a/2", b"2")


def test_a_shard_that_breaks_off_keeps_what_came_before(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", ("0.jpg", b"0" * 600), ("1.jpg", b"1" * 600))
    path.write_bytes(path.read_bytes()[:2000])
    ((first, *_, last),) = read(path)
    assert (first.key, first.data) == ("0", b"0" * 600)
    assert last.problem == "The shard is damaged from here on."
