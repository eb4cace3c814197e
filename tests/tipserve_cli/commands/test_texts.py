"""Embeddings of texts in each format, from each source."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.tipserve_cli.conftest import Fake
from tipserve_cli.program import DONE, main


def test_each_format_has_the_same_vectors(
    tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("t.json", "t.npy", "t.parquet")]
    for file in files:
        assert main(["texts", "a dog", "-o", str(file), "a cat"]) == DONE
    assert capsys.readouterr().out.splitlines() == [f"{file}: 2 texts" for file in files]
    assert main(["texts", "a dog", "a cat", "--templates=tcl", "--no-normalize"]) == DONE
    rows = json.loads(capsys.readouterr().out)
    assert [row["text"] for row in rows] == ["a dog", "a cat"]
    assert [row["embedding"] for row in rows] == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert json.loads(files[0].read_text()) == rows
    assert np.load(files[1], allow_pickle=False).tolist() == [row["embedding"] for row in rows]
    assert pq.read_table(files[2]).to_pylist() == rows
    requests = fake.requests
    assert [one.fields for one in requests[-2:]] == [
        {"templates": "none", "normalize": True},
        {"templates": "tcl", "normalize": False},
    ]


def test_lines_are_read_from_a_file_or_from_standard_input(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"text {number}" for number in range(300)]
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(lines) + "\n")
    assert main(["texts", "--file", str(file)]) == DONE
    rows = json.loads(capsys.readouterr().out)
    assert [row["text"] for row in rows] == lines
    assert [len(one.texts) for one in fake.requests] == [256, 44]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["texts", "-"]) == DONE
    assert json.loads(capsys.readouterr().out) == rows
