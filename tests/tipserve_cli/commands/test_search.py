"""The images of an embedded folder that are most similar to words or to an image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.tipserve_cli.conftest import Fake
from tipserve_cli.bulk.rows import row_schema, to_table
from tipserve_cli.program import DONE, FAILED, main

VECTORS = {
    "a.jpg": [0.5, 0, 0, 2],
    "b.jpg": [3, 0, 0, 3],
    "c.jpg": [9, 0, 0, 0],
    "d.jpg": [0, 0, 0, 0],
}

RECORD = {"options": {"resolution": 56, "fit": "aspect"}}


def write_archive(file: Path, **record: Any) -> Path:
    """The same as an archive of NumPy."""
    names = list(VECTORS)
    known = json.dumps({**RECORD, **record})
    vectors = np.array(list(VECTORS.values()), np.float16)
    np.savez(file, key=names, source=[f"x/{name}" for name in names], cls1=vectors, tipserve=known)
    return file


def write_embeddings(file: Path, names: list[str], **record: Any) -> Path:
    """A file as `tipserve embed` writes it."""
    rows = [
        {"key": name, "source": f"x/{name}", "height": 1, "width": 1, "cls1": np.array(vector)}
        for name, vector in VECTORS.items()
        if name in names
    ]
    known = {**RECORD, **record}
    schema = row_schema(("cls1",), 4, "float16", {"tipserve": json.dumps(known)})
    pq.write_table(to_table(rows, schema), file)
    return file


def test_the_best_images_are_printed_with_scores(
    image: Path, tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_embeddings(tmp_path / "e.parquet", list(VECTORS))
    folder = tmp_path / "parts"
    folder.mkdir()
    write_embeddings(folder / "part-00000.parquet", ["a.jpg", "c.jpg"])
    write_embeddings(folder / "part-00001.parquet", ["b.jpg", "d.jpg"])
    archive = write_archive(tmp_path / "e.npz")
    for place in (file, folder, archive):
        assert main(["search", str(place), "a dog"]) == DONE
        assert capsys.readouterr().out.splitlines() == [
            "1.0000  c.jpg",
            "0.7071  b.jpg",
            "0.2425  a.jpg",
            "0.0000  d.jpg",
        ]
    assert [request.texts for request in fake.requests] == [("a dog",)] * 3
    for place in (file, archive):
        arguments = ["search", str(place), "--image", str(image), "--top=2", "--json"]
        assert main(arguments) == DONE
        found = json.loads(capsys.readouterr().out)
        assert [(one["key"], one["source"]) for one in found] == [
            ("c.jpg", "x/c.jpg"),
            ("b.jpg", "x/b.jpg"),
        ]
        assert found[1]["score"] == pytest.approx(0.5**0.5)
        # The image of a query is resized as the others were.
        asked = {"outputs": ["cls1"], "resolution": 56, "fit": "aspect"}
        assert fake.requests[-1].fields == asked


def test_the_images_found_are_copied_by_rank(
    tmp_path: Path,
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    for name in VECTORS:
        Path("x", name).write_text(name)
    write_embeddings(Path("e.parquet"), list(VECTORS))
    command = ["search", "e.parquet", "a dog", "--top=2", "--save"]
    assert main([*command, "found/new"]) == DONE
    copied = {path.name: path.read_text() for path in Path("found/new").iterdir()}
    assert copied == {"01-c.jpg": "c.jpg", "02-b.jpg": "b.jpg"}
    Path("x", "b.jpg").unlink()
    assert main([*command, "again"]) == FAILED
    assert "x/b.jpg: No such file" in capsys.readouterr().err


def test_embeddings_of_another_model_are_refused(
    tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"name": "other", "fingerprint": "y"}
    file = write_embeddings(tmp_path / "e.parquet", ["a.jpg"], model=model)
    assert main(["search", str(file), "a"]) == FAILED
    error = capsys.readouterr().err
    assert "was embedded by other, and the query would be by fake; choose the same" in error
    archive = write_archive(tmp_path / "e.npz", model=model)
    assert main(["search", str(archive), "a"]) == FAILED
    assert "was embedded by other" in capsys.readouterr().err
    assert not fake.requests
    assert (
        main(["search", str(write_embeddings(file, ["a.jpg"], model={"fingerprint": "x"})), "a"])
        == DONE
    )
