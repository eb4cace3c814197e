"""`python -m training shards`: each kind writes a data set and describes it."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.__main__ import main
from training.data.shards.manifest import ShardStore


@pytest.fixture
def images(make_images: Callable[..., Path]) -> Path:
    """Three images, one with a caption."""
    return make_images(count=3, captioned=1)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a job that succeeds; returns its output."""

    def run(*arguments: object) -> str:
        status = main(["shards", *map(str, arguments)])
        output = capsys.readouterr()
        assert status == 0, output.err
        return output.out

    return run


def test_a_folder_becomes_shards(tmp_path: Path, images: Path, printed: Callable[..., str]) -> None:
    output = printed("folder", images, "--output", tmp_path / "out", "--shard-size", 2)
    assert f"2 shards are ready in {tmp_path / 'out'}\n" in output
    assert "3 images, 1 of them with captions (alt 1)" in output
    assert ShardStore(tmp_path / "out").read(0, 0).captions == {"alt": "a plain wall, number 0"}


def test_parquet_becomes_shards(tmp_path: Path, images: Path, printed: Callable[..., str]) -> None:
    names, texts = ["0.png", "missing.png"], ["a", "b"]
    pq.write_table(
        pa.table({"file": names, "text": texts, "url": texts}), tmp_path / "rows.parquet"
    )
    output = printed(
        "parquet",
        tmp_path / "rows.parquet",
        *("--image", "file", "--caption", "gemini=text", "--keep", "url", "--root", images),
        *("--output", tmp_path / "out"),
    )
    assert "1 shards are ready" in output
    assert "1 broken samples left out" in output
    sample = ShardStore(tmp_path / "out").read(0, 0)
    assert (sample.captions, sample.fields) == ({"gemini": "a"}, {"url": "a"})


def test_a_data_set_is_described_checked_and_indexed(
    tmp_path: Path, images: Path, printed: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds plain images" in printed("describe", images)
    out = tmp_path / "out"
    printed("folder", images, "--output", out)
    assert "holds shards" in printed("describe", out)
    assert "is intact" in printed("verify", out)
    (out / "manifest.json").unlink()
    assert "3 images" in printed("index", out)
    with (out / "shard-000000.tar").open("ab") as file:
        file.write(b"x")
    assert main(["shards", "verify", str(out)]) == 2
    assert "shard-000000.tar is not the file that was written" in capsys.readouterr().err


def test_a_caption_column_needs_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["shards", "parquet", "x.parquet", "--caption", "text", "--output", str(tmp_path)]
    assert main(arguments) == 2
    assert "SOURCE=COLUMN" in capsys.readouterr().err
