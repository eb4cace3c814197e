"""Copies of runs in an object store, here one in memory."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import make_tiny_config, use_few_scenes
from training.checkpoint import checkpoint_step
from training.data.folder import DataFolder
from training.observation import read_log
from training.run import run
from training.run_store import RunStore

URL = "memory://bucket/runs"
FILES = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    """Leave nothing to other tests."""
    yield
    if FILES.exists("/bucket"):
        FILES.rm("/bucket", recursive=True)


def write_checkpoint(run_folder: Path, step: int) -> Path:
    """A folder with the files of a checkpoint."""
    folder = run_folder / f"checkpoints/step-{step:08d}"
    (folder / "state").mkdir(parents=True)
    for name in ("checkpoint.json", "model.safetensors", "state/part"):
        (folder / name).write_text(f"{name} of {step}", encoding="utf-8")
    return folder


def test_a_run_continues_on_a_machine_that_has_none_of_it(
    data_folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_few_scenes(monkeypatch)
    tiny = make_tiny_config(tmp_path)
    data = replace(tiny.data, folder=data_folder.path)
    first = replace(tiny, data=data, num_steps=3, checkpoint_store=URL)
    run(first)
    second = replace(first, runs=tmp_path / "elsewhere")
    RunStore(second.folder, URL).fetch()
    assert checkpoint_step(second.folder) == 3
    run(second)  # has nothing left to train
    assert read_log(second.folder) == read_log(first.folder)
    weights, expected = (load_file(c.folder / "model/model.safetensors") for c in (second, first))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_the_newest_complete_checkpoint_is_fetched_and_old_ones_are_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = tmp_path / "a/run", tmp_path / "b/run"
    store = RunStore(own, URL)
    store.fetch()  # there is nothing yet
    for step in (1, 2, 3):
        store.put(write_checkpoint(own, step), keep=2)
    (own / "log.jsonl").write_text("{}", encoding="utf-8")
    store.put(write_checkpoint(own, 4), keep=3)
    assert store._complete() == ["step-00000002", "step-00000003", "step-00000004"]
    FILES.rm("/bucket/runs/run/checkpoints/step-00000004/checkpoint.json")  # as if interrupted
    RunStore(other, URL).fetch()
    assert "continues from" in capsys.readouterr().out
    found = {str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()}
    folder = "checkpoints/step-00000003"
    files = ("checkpoint.json", "model.safetensors", "state/part")
    assert found == {"log.jsonl", *(f"{folder}/{name}" for name in files)}
    newer = write_checkpoint(other, 5)
    RunStore(other, URL).fetch()  # what is here is newer
    assert [path.name for path in sorted(newer.parent.iterdir())][-1] == newer.name
    assert "continues from" not in capsys.readouterr().out


def test_an_unknown_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_store=nowhere://x: Protocol not known"):
        RunStore(tmp_path, "nowhere://x")
    with pytest.raises(ValueError, match=r"checkpoint_store=s3://x: .*s3fs"):
        RunStore(tmp_path, "s3://x")
