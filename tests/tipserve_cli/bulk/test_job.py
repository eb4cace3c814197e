"""Parts are written whole; an interrupted job continues to the same rows."""

import io
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.core import url_to_fs
from PIL import Image

from tests.tipserve_cli.conftest import WIDTH, Fake
from tipserve_cli.bulk.inputs import Columns, find_inputs
from tipserve_cli.bulk.job import (
    Job,
    JobFolder,
    compute_here,
    errors_file,
    locked_folder,
    run_job,
)
from tipserve_cli.bulk.rows import ParquetTask
from tipserve_cli.engine import Engine, UserError
from tipserve_client import Client, TipserveError
from tipserve_client.requests import Request
from tipserve_client.results import ImageEmbedding


class Colours(Fake):
    """The embedding of an image is its mean colour."""

    def embed_images(self, request: Request) -> ImageEmbedding:
        with Image.open(io.BytesIO(request.images[0])) as image:
            mean = np.append(np.asarray(image).mean((0, 1)), 1).astype(np.float32)
        known: dict[str, Any] = {"cls1": mean, "cls2": -mean, "patches": np.tile(mean, (2, 3, 1))}
        return ImageEmbedding(**{name: known[name] for name in request.fields["outputs"]})


@pytest.fixture
def colours() -> Colours:
    return Colours()


@pytest.fixture
def run(colours: Colours) -> Iterator[Callable[[Job, Path | str], None]]:
    """Write or continue a job: a Parquet file, or a folder."""
    engine = Engine(Client(colours), 2)

    def write(job: Job, place: Path | str) -> None:
        is_file = str(place).endswith(".parquet")
        compute = partial(compute_here, engine)
        run_job(job, compute, output=str(place), is_file=is_file, overwrite=False)

    yield write
    engine.close()


Run = Callable[[Job, Path | str], None]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images of different sizes, one of them broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(10):
        Image.new("RGB", (20 + index, 10), (20 * index, 10, 20)).save(folder / f"{index}.jpg")
    (folder / "4.jpg").write_bytes(b"nonsense")
    return folder


def make_job(
    named: Path | str,
    *,
    part_items: int = 3,
    digest: str = "x",
    outputs: tuple[str, ...] = ("cls1",),
    **options: Any,
) -> Job:
    task = ParquetTask(
        outputs=outputs, dtype="float32", columns=Columns(), part_items=part_items,
        request={"resolution": None, **options},
    )  # fmt: skip
    inputs = find_inputs([str(named)], [], part_items)
    model = {"name": "fake", "fingerprint": digest, "embed_dim": WIDTH}
    return Job(inputs=inputs, task=task, model=model)


def rows(path: Path) -> pa.Table:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return pa.concat_tables([pq.read_table(file) for file in files])


def test_every_image_has_a_row_or_is_listed_as_skipped(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    run(make_job(photos, outputs=("cls1", "patches")), tmp_path / "out")
    found = rows(tmp_path / "out")
    good = [index for index in range(10) if index != 4]
    assert found["key"].to_pylist() == [str(photos / f"{index}.jpg") for index in good]
    assert found["height"].to_pylist() == [10] * 9
    assert found["width"].to_pylist() == [20 + index for index in good]
    assert found["cls1"].type.list_size == WIDTH
    reds = [row[0] for row in found["cls1"].to_pylist()]
    np.testing.assert_allclose(reds, np.array(good) * 20, atol=9)
    assert (found["grid_height"][0].as_py(), found["grid_width"][0].as_py()) == (2, 3)
    assert len(found["patches"][0].as_py()) == 6
    (errors,) = (tmp_path / "out" / "_errors").iterdir()
    assert errors.name == "part-00001.jsonl"
    assert '"code": "invalid_image"' in errors.read_text()


@pytest.mark.parametrize("most_images", [0, 5])
@pytest.mark.parametrize("place", ["out.parquet", "out", "memory://TMP/job", "file://TMP/job"])
def test_an_interrupted_job_continues_to_the_same_rows(
    run: Run,
    colours: Colours,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    most_images: int,
    place: str,
) -> None:
    store = place.replace("TMP", str(tmp_path)) if "://" in place else tmp_path.as_uri()
    files, root = url_to_fs(store)
    if "://" in place:
        files.put(str(photos), f"{root}/photos", recursive=True)
        job, out = make_job(f"{store}/photos"), f"{store}/out"
    else:
        job, out = make_job(photos), str(tmp_path / place)
    run(job, tmp_path / "whole")
    colours.num_images, colours.most_images = 0, most_images
    with pytest.raises(TipserveError, match="has gone"):
        run(job, out)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not Path(out).is_file()
    colours.num_images, colours.most_images = 0, 1000
    run(job, out)
    assert 10 - most_images <= colours.num_images <= 13 - most_images + 2
    if out.endswith(".parquet"):
        assert rows(Path(out)).equals(rows(tmp_path / "whole"))
        assert '"invalid_image"' in errors_file(Path(out)).read_text(encoding="utf-8")
        assert not (tmp_path / "out.parquet.parts").exists()
        before = Path(out).read_bytes()
        run(job, out)  # it is finished
        with pytest.raises(UserError, match="exists; choose another output"):
            run(make_job(photos, resolution=28), out)
        assert Path(out).read_bytes() == before
        assert capsys.readouterr().out.endswith(
            f"{out}: 9 rows\n{out} is finished; --overwrite computes it again.\n"
        )
        return
    colours.most_images = colours.num_images
    run(job, out)  # asks for nothing
    files.get(f"{root}/out", str(tmp_path / "copy"), recursive=True)
    assert rows(tmp_path / "copy").equals(rows(tmp_path / "whole"))
    errors = "_errors/part-00001.jsonl"
    assert (tmp_path / "copy" / errors).read_bytes() == (tmp_path / "whole" / errors).read_bytes()
    with locked_folder(out, job) as folder:
        folder.clear()
    left = [name.rpartition("/")[2] for name in files.find(f"{root}/out")]
    assert set(left) <= {"_tipserve.json", "_lock"}


def test_only_missing_parts_are_computed_and_their_skipped_images_replaced(
    run: Run, colours: Colours, photos: Path, tmp_path: Path
) -> None:
    job, out = make_job(photos), tmp_path / "out"
    run(job, out)
    (out / "part-00001.parquet").unlink()
    left = out / ".part-00001.parquet.1.tmp"  # of a killed process
    left.write_bytes(b"half")
    (photos / "4.jpg").write_bytes((photos / "3.jpg").read_bytes())
    with pytest.raises(UserError, match="from other inputs"):
        run(make_job(photos), out)
    colours.num_images = 0
    run(job, out)
    assert colours.num_images == 3
    assert not left.exists()
    assert not list((out / "_errors").iterdir())


def test_the_progress_counts_images_and_whole_shards(
    colours: Colours, photos: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for file in sorted(photos.iterdir()):
            shard.add(file, file.name)
    engine = Engine(Client(colours), 2)
    for source, expected in ((photos, [0] * 4 + [1] + [0] * 5), (tmp_path / "a.tar", [1])):
        seen: list[int] = []

        def count(num_skipped: int, num_done: int = 1, seen: list[int] = seen) -> None:
            seen.append(num_skipped)
            assert num_done == 1

        job = make_job(source, part_items=32)
        folder = JobFolder(str(tmp_path / f"out-{source.name}"), job)
        compute_here(engine, job.inputs.parts, folder, count)
        assert seen == expected
    engine.close()


def test_files_of_others_are_refused_and_kept(run: Run, photos: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "part-00000.parquet"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    with pytest.raises(UserError, match="contains other files"):
        run(make_job(photos), tmp_path / "out")
    with locked_folder(str(tmp_path / "out"), make_job(photos)) as folder:
        folder.clear()
    assert theirs.read_bytes() == b"theirs"


def test_two_processes_do_not_write_to_one_folder(photos: Path, tmp_path: Path) -> None:
    place, job = str(tmp_path / "out"), make_job(photos)
    with (
        locked_folder(place, job),
        pytest.raises(UserError, match="Another process"),
        locked_folder(place, job),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"outputs": ("cls2",)}, r'options \(outputs: was \["cls1"\], is now \["cls2"\]'),
        ({"resolution": 28}, "resolution: was null, is now 28"),
        ({"part_items": 4}, "part_items: was 3, is now 4"),
        ({"digest": "g"}, "by another model"),
        ({"record": b"no JSON"}, "by another version. .* start again with --overwrite"),
        ({"record": b"[]"}, "by another version. .* start again with --overwrite"),
    ],
)
def test_a_change_is_named(
    run: Run, photos: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    run(make_job(photos), tmp_path / "out")
    if record := change.pop("record", None):
        (tmp_path / "out" / "_tipserve.json").write_bytes(record)
    with pytest.raises(UserError, match=sentence):
        run(make_job(photos, **change), tmp_path / "out")
