"""`run.json` keeps what repeats a run, a start after another."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from training import run_record
from training.run_record import (
    RECORD_FILE,
    as_json,
    code_version,
    digest,
    read_configs,
    record_end,
    record_start,
)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Inner:
    """Part of a configuration."""

    sizes: tuple[int, ...] = (1, 2)
    folder: Path = Path("a/b")


@dataclass(frozen=True)
class Outer:
    """A configuration."""

    rate: float = 0.5
    inner: Inner = field(default_factory=Inner)


AS_JSON = {"kind": "Outer", "rate": 0.5} | {
    "inner": {"kind": "Inner", "sizes": [1, 2], "folder": "a/b"}
}


def read(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text("utf-8"))
    return record


def test_a_configuration_names_its_classes() -> None:
    assert as_json(Outer()) == AS_JSON
    assert as_json({1: (None, True, "x")}) == {"1": [None, True, "x"]}


def test_every_start_is_kept_with_what_repeats_it(tmp_path: Path) -> None:
    record_start(tmp_path, Outer(), from_step=0, device=CPU, seeds={"run": 3}, data=Path("d"))
    record_start(tmp_path, Outer(rate=0.1), from_step=7, device=CPU, num_ranks=2)
    record_end(tmp_path, state_bytes=12)
    record = read(tmp_path)
    assert (record["format_version"], record["run"]) == (1, tmp_path.name)
    first, second = record["starts"]
    assert first["config"] == AS_JSON
    assert (first["from_step"], first["seeds"], first["data"]) == (0, {"run": 3}, "d")
    assert {"python", "torch", "transformers", "numpy"} <= set(first["versions"])
    assert first["command"]
    assert {"name", "system", "num_cpus", "threads"} <= set(first["host"])
    assert first["host"]["num_ranks"] == 1
    assert "end" not in first
    assert (second["from_step"], second["host"]["num_ranks"]) == (7, 2)
    assert second["end"]["state_bytes"] == 12
    assert [config["rate"] for config in read_configs(tmp_path)] == [0.5, 0.1]  # type: ignore[index]
    assert not list(tmp_path.glob("*.tmp"))


def test_the_code_is_named_by_its_commit_and_by_whether_it_was_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {"rev-parse": "abc", "status": " M x.py"}
    monkeypatch.setattr(run_record, "_git", lambda *arguments: answers[arguments[0]])
    assert code_version() == {"commit": "abc", "is_dirty": True}
    answers["status"] = ""
    assert code_version() == {"commit": "abc", "is_dirty": False}
    monkeypatch.setattr(run_record, "_git", lambda *_: None)
    assert code_version() == {"commit": None, "is_dirty": None}


def test_a_digest_follows_names_sizes_and_contents(tmp_path: Path) -> None:
    one, two, missing = tmp_path / "one", tmp_path / "two", tmp_path / "missing"
    one.write_bytes(b"abc")
    two.write_bytes(b"def")
    whole = digest([one, two])
    assert digest([two, missing, one]) == whole
    assert digest([one]) != whole
    two.write_bytes(b"deg")
    assert digest([one, two]) != whole


def test_records_of_earlier_versions_are_read_and_nothing_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="it is no run"):
        read_configs(tmp_path)
    (tmp_path / "config.txt").write_text("first\nsecond\n", encoding="utf-8")
    assert read_configs(tmp_path) == ["first", "second"]
