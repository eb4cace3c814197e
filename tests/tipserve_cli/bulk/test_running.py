"""Parts are written atomically; an interrupted job continues to the same rows."""

import io
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.core import url_to_fs

from tipserve_cli.bulk.output import (
    Job,
    JobError,
    count_rows,
    errors_file,
    is_finished,
    join_parts,
    locked_folder,
)
from tipserve_cli.bulk.running import job_schema, run_here

Make = Callable[..., Job]


class Counter:
    """Counts images and parts."""

    def __init__(self) -> None:
        self.num_items = 0
        self.parts: list[tuple[int, int]] = []

    def image_read(self) -> None:
        self.num_items += 1

    def part_written(self, num_rows: int, num_bad: int) -> None:
        self.parts.append((num_rows, num_bad))


def run(engine: Any, job: Job, path: Path | str) -> Counter:
    progress = Counter()
    with locked_folder(path) as folder:
        folder.start(job.record())
        run_here(engine, job, folder, progress)
    return progress


def rows(path: Path) -> pa.Table:
    files = sorted(path.glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def test_every_image_has_a_row_or_is_listed_as_skipped(
    engine: Any, make_job: Make, photos: Path, tmp_path: Path
) -> None:
    progress = run(engine, make_job(photos), tmp_path / "out")
    assert sorted(progress.parts) == [(1, 0), (2, 1), (3, 0), (3, 0)]
    keys = [str(photos / f"{i}.jpg") for i in range(10) if i != 4]
    assert rows(tmp_path / "out")["key"].to_pylist() == keys
    assert [p.name for p in (tmp_path / "out" / "_errors").iterdir()] == ["part-00001.jsonl"]


@pytest.mark.parametrize("break_at", [1, 2, 6, 10])
def test_an_interrupted_job_continues_to_the_same_rows(
    engine: Any, make_job: Make, photos: Path, tmp_path: Path, break_at: int
) -> None:
    run(engine, make_job(photos), tmp_path / "whole")
    engine.num_asked, engine.break_at = 0, break_at
    with pytest.raises(RuntimeError, match="broken"):
        run(engine, make_job(photos), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp"))
    engine.break_at = None
    run(engine, make_job(photos), tmp_path / "out")
    assert rows(tmp_path / "out").equals(rows(tmp_path / "whole"))


@pytest.mark.parametrize("break_at", [1, 6])
def test_a_job_in_a_store_continues_to_the_same_rows(
    engine: Any, make_job: Make, photos: Path, tmp_path: Path, store: str, break_at: int
) -> None:
    files, root = url_to_fs(store)
    files.put(str(photos), f"{root}/photos", recursive=True)
    job, out = make_job(f"{store}/photos"), f"{store}/out"
    run(engine, job, tmp_path / "whole")
    engine.num_asked, engine.break_at = 0, break_at
    with pytest.raises(RuntimeError, match="broken"):
        run(engine, job, out)
    # Not the garbage collector ends the threads: where it runs, joining them may hang.
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("object")]
    engine.break_at = None
    run(engine, job, out)
    assert run(engine, job, out).parts == []
    files.get(f"{root}/out", str(tmp_path / "copy"), recursive=True)
    assert rows(tmp_path / "copy").equals(rows(tmp_path / "whole"))
    errors = "_errors/part-00001.jsonl"
    assert (tmp_path / "copy" / errors).read_bytes() == (tmp_path / "whole" / errors).read_bytes()
    with locked_folder(out) as folder:
        assert folder.totals() == (9, 1)
        with pytest.raises(JobError, match="other options"):
            folder.start(make_job(f"{store}/photos", outputs=("cls2",)).record())
        folder.clear()
    assert not files.find(f"{root}/out")


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_rows_and_shards_are_embedded_as_files_are(
    engine: Any, make_job: Make, photos: Path, tmp_path: Path, kind: str
) -> None:
    run(engine, make_job(photos), tmp_path / "files")
    images = {path.stem: path.read_bytes() for path in sorted(photos.iterdir())}
    source = tmp_path / f"images.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"image": list(images.values())}), source)
    else:
        with tarfile.open(source, "w") as shard:
            for name, data in images.items():
                info = tarfile.TarInfo(f"{name}.jpg")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
    run(engine, make_job(source), tmp_path / "out")
    found, columns = rows(tmp_path / "out"), ["height", "width", "cls1"]
    assert found.select(columns).equals(rows(tmp_path / "files").select(columns))
    assert set(found["source"].to_pylist()) == {str(source)}


def test_only_missing_parts_are_computed_and_temporary_files_are_removed(
    engine: Any, make_job: Make, photos: Path, tmp_path: Path
) -> None:
    run(engine, make_job(photos), tmp_path / "out")
    (tmp_path / "out" / "part-00002.parquet").unlink()
    left = tmp_path / "out" / ".part-00001.parquet.1.tmp"  # of a killed process
    left.write_bytes(b"half")
    assert run(engine, make_job(photos), tmp_path / "out").parts == [(3, 0)]
    assert not left.exists()


def test_a_part_that_is_computed_again_replaces_its_skipped_images(
    engine: Any, make_job: Make, photos: Path, tmp_path: Path
) -> None:
    run(engine, make_job(photos), tmp_path / "out")
    (tmp_path / "out" / "part-00001.parquet").unlink()
    whole = (photos / "3.jpg").read_bytes()
    size = (photos / "4.jpg").stat().st_size
    (photos / "4.jpg").write_bytes(whole)
    job = make_job(photos)
    assert size != len(whole)
    with pytest.raises(JobError, match="from other inputs"):
        run(engine, job, tmp_path / "out")
    with locked_folder(tmp_path / "out") as folder:
        run_here(engine, job, folder, Counter())
    assert not list((tmp_path / "out" / "_errors").iterdir())


def test_options_may_change_before_the_first_part_is_written(
    engine: Any, make_job: Make, photos: Path, tmp_path: Path
) -> None:
    engine.break_at = 1
    with pytest.raises(RuntimeError, match="broken"):
        run(engine, make_job(photos), tmp_path / "out")
    engine.break_at = None
    assert len(run(engine, make_job(photos, outputs=("cls2",)), tmp_path / "out").parts) == 4


def test_a_folder_with_other_files_is_refused(
    engine: Any, make_job: Make, photos: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "out" / "part-00000.parquet"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    with pytest.raises(JobError, match="contains other files"):
        run(engine, make_job(photos), tmp_path / "out")
    with locked_folder(tmp_path / "out") as folder:
        folder.clear()
    assert theirs.read_bytes() == b"theirs"


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with (
        locked_folder(tmp_path),
        pytest.raises(JobError, match="Another process"),
        locked_folder(tmp_path),
    ):
        pass


def test_parts_become_one_file(engine: Any, make_job: Make, photos: Path, tmp_path: Path) -> None:
    job, file = make_job(photos), tmp_path / "out.parquet"
    run(engine, job, tmp_path / "parts")
    expected = rows(tmp_path / "parts")
    with locked_folder(tmp_path / "parts") as folder:
        join_parts(folder, file, job_schema(job))
    assert pq.read_table(file).equals(expected)
    assert count_rows(file) == (9, 1)
    assert '"invalid_image"' in errors_file(file).read_text(encoding="utf-8")
    assert not (tmp_path / "parts").exists()
    assert is_finished(file, job.record())
    with pytest.raises(JobError, match="other options"):
        is_finished(file, make_job(photos, outputs=("cls2",)).record())


def test_a_file_of_another_program_is_not_replaced(
    tmp_path: Path, make_job: Make, photos: Path
) -> None:
    file = tmp_path / "theirs.parquet"
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(JobError, match="not an output of this command"):
        is_finished(file, make_job(photos).record())
