"""Whole runs by two real ranks over gloo, in every kind, equal the run of one process."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.training.ranks import TIMEOUT_S, two_ranks
from tests.training.trainer_rank import KINDS, STOP_AFTER, STOPPED, config_of
from training.checkpoint import checkpoint_step, latest_checkpoint
from training.observation import Row, read_log
from training.run import run

# The first test waits for all runs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run, by one process under `alone` and by two ranks under `shared`."""
    root = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    for name in ("images", "probe/red", "probe/blue"):
        (root / name).mkdir(parents=True)
        for number in range(24 if name == "images" else 2):
            path = root / name / f"{number}.png"
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
            path.with_suffix(".txt").write_text(f"a wall, number {number}", encoding="utf-8")
    with two_ranks("tests.training.trainer_rank", root):
        for name in ("whole", "accumulate", "bfloat16"):
            run(config_of(name, root / "alone", num_ranks=1))
    return root


def curve(folder: Path) -> list[Row]:
    """The log without its clocks and without rank 0's scores."""
    clocks = ("time_s", "step_s", "wait_s")
    return [
        {name: v for name, v in row.items() if name not in clocks and not name.startswith("probe")}
        for row in read_log(folder)
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model/model.safetensors")


def starts(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "run.json").read_text("utf-8"))["starts"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one_does_on_the_global_batch(folder: Path, kind: str) -> None:
    last, rounding = ("bfloat16", 3e-3) if kind == "hsdp" else ("accumulate", 1e-4)
    for name, shared_name, tolerance in (("whole", kind, 1e-5), (last, f"{kind}-{last}", rounding)):
        alone, shared = curve(folder / "alone" / name), curve(folder / "shared" / shared_name)
        assert {"loss", "cls1", "cls2", "dino", "ibot", "grad_norm"} <= set(alone[0])
        for expected, row in zip(alone, shared, strict=True):
            assert row.keys() == expected.keys()
            assert row["loss"] == pytest.approx(expected["loss"], rel=tolerance), row["step"]
    expected_weights, found = weights(folder / "alone/whole"), weights(folder / "shared" / kind)
    assert found.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        # Biases of keys have no effect; they consist of rounding errors.
        assert (found[name] - value).norm() <= 1e-2 * value.norm(), name


def test_a_stop_on_one_rank_saves_on_all_and_the_resumed_run_is_the_same(folder: Path) -> None:
    whole, stopped = folder / "shared/fsdp2", folder / "shared" / STOPPED
    assert [start["from_step"] for start in starts(stopped)] == [0, STOP_AFTER + 1]
    assert curve(stopped) == curve(whole)
    resumed = weights(stopped)
    assert all(torch.equal(resumed[name], value) for name, value in weights(whole).items())
    asked = [(folder / f"rank-{rank}.err").read_text("utf-8") for rank in range(2)]
    assert ["SIGTERM: finishing the step" in text for text in asked] == [False, True]


def test_one_process_resumes_a_checkpoint_of_two_ranks(folder: Path) -> None:
    shared, resumed = folder / "shared" / STOPPED, folder / "resumed/whole"
    shutil.copytree(shared, resumed)
    latest = latest_checkpoint(resumed)
    assert latest is not None
    shutil.rmtree(latest)
    assert checkpoint_step(resumed) == STOP_AFTER + 1
    run(config_of("whole", folder / "resumed", num_ranks=1))
    for expected, row in zip(curve(folder / "alone/whole"), curve(resumed), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5), row["step"]


def test_a_run_of_two_ranks_is_recorded_scored_and_shown_once(folder: Path) -> None:
    for kind in ("ddp", "fsdp2"):
        shared = folder / "shared" / f"{kind}-accumulate"
        (start,) = starts(shared)
        assert start["host"]["num_ranks"] == 2
        assert checkpoint_step(shared) == 4
        assert "probe/top-1" in read_log(shared)[-1]
        assert len(list((shared / "tensorboard").iterdir())) == 1
    shown = [(folder / f"rank-{rank}.out").read_text("utf-8") for rank in range(2)]
    assert "4/4" in shown[0]
    assert shown[1] == ""
