"""Measured runs made of counts, and a whole toy plan on drawn shapes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.training.conftest import use_few_scenes
from training.config import TrainingConfig
from training.data.folder import DataFolder
from training.reproduce import plan as plan_module
from training.reproduce.plan import PlannedRun, ReproductionPlan, smoke
from training.reproduce.runner import (
    LARGEST,
    MEASURES,
    PAINTED,
    RECORD,
    RETRIEVAL,
    Record,
    save_measures,
)

_SCENES, _NAMES, _PIXELS = 6, 4, 100


def _counts(rng: np.random.Generator, hit_share: float) -> dict[str, NDArray[np.float64]]:
    """Two names a scene, half of the pixels each; hits about `hit_share` of them."""
    truth = np.zeros((_SCENES, _NAMES))
    for scene in range(_SCENES):
        truth[scene, [scene % _NAMES, (scene + 1) % _NAMES]] = _PIXELS
    hit = np.clip(np.round(truth * (hit_share + rng.normal(0, 0.02, truth.shape))), 0, truth)
    called = hit + (truth.sum(1, keepdims=True) - hit.sum(1, keepdims=True)) / _NAMES
    chosen = hit.sum(1)
    return {"hit_SK": hit, "truth_SK": truth, "called_SK": called, "chosen_S": chosen}


def fake_measures(hit_share: float, seed: int) -> dict[str, NDArray[np.float64]]:
    """Measures of a run whose patches hit this share of the pixels."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for scenes in ("val", "seen", "unseen"):
        shares = {"patches": hit_share, "values": hit_share / 2, PAINTED: 0.3, LARGEST: 0.5}
        for row, share in shares.items():
            for field, counts in _counts(rng, share).items():
                arrays[f"{scenes}/{row}/{field}"] = counts
        for direction in RETRIEVAL:
            arrays[f"{scenes}/retrieval/{direction}"] = np.asarray([1.0, 0, 0, 1, 1, 0])
    return arrays


@pytest.fixture
def plan(tmp_path: Path) -> ReproductionPlan:
    """A plan at toy size, without data."""
    return ReproductionPlan(scale=smoke(), data=tmp_path / "data", runs=tmp_path / "runs")


@pytest.fixture
def finish() -> Callable[[PlannedRun, float], None]:
    """Write the files of a finished run with a given share of hits."""

    def write(run: PlannedRun, hit_share: float) -> None:
        folder = run.config.folder
        folder.mkdir(parents=True)
        save_measures(fake_measures(hit_share, run.seed), folder / MEASURES)
        record = Record(config=repr(run.config), num_images=64, cpu_s=2.0, is_whole=True)
        record.write(folder / RECORD)
        (folder / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n', encoding="utf-8")

    return write


@pytest.fixture
def toy_plan(
    data_folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ReproductionPlan:
    """A plan at toy size that can be run on drawn shapes, in float32."""
    use_few_scenes(monkeypatch)
    monkeypatch.setattr(plan_module, "TrainingConfig", partial(TrainingConfig, precision="float32"))
    return ReproductionPlan(scale=smoke(), data=data_folder.path, runs=tmp_path / "runs")
