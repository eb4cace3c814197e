"""Runs are made once, in order, resumed where they were stopped, and never mixed up."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.config import TrainingConfig
from training.data.folder import DataFolder
from training.reproduce import runner as runner_module
from training.reproduce.plan import RECIPE, PlannedRun, ReproductionPlan
from training.reproduce.runner import (
    AVERAGE_MEASURES,
    MEASURES,
    Benchmarks,
    load_measures,
    make_benchmarks,
    make_runs,
    read_record,
)
from training.run import run as real_train
from training.trainer import BatchSource

Finish = Callable[[PlannedRun, float], None]


@pytest.fixture
def benchmarks(data_folder: DataFolder) -> Benchmarks:
    """Two scenes a set."""
    return make_benchmarks(data_folder, size=28, num_scenes=2)


def first_runs(plan: ReproductionPlan) -> list[PlannedRun]:
    """The contrastive start and iBOT++."""
    return plan.all_runs([0])[:2]


def test_a_run_leaves_its_measures_and_a_record(
    toy_plan: ReproductionPlan, benchmarks: Benchmarks
) -> None:
    written = list[int]()
    runs = first_runs(toy_plan)
    make_runs(runs, benchmarks, after_each=lambda: written.append(1))
    start, recipe = (run.config.folder for run in runs)
    assert len(written) == 2
    assert not (start / MEASURES).exists()  # no table shows it
    assert load_measures(recipe / MEASURES)["seen/patches/chosen_S"].shape == (2,)
    record = read_record(recipe)
    assert record is not None
    assert record.is_whole
    assert record.num_images == 8
    assert record.cpu_s > 0


def test_the_averaged_encoder_is_measured_beside_the_trained_one(
    toy_plan: ReproductionPlan, benchmarks: Benchmarks
) -> None:
    runs = [run for run in toy_plan.all_runs([0]) if run.variant in ("start", "full-ema")]
    make_runs(runs, benchmarks, after_each=lambda: None)
    folder = runs[1].config.folder
    trained, averaged = (load_measures(folder / name) for name in (MEASURES, AVERAGE_MEASURES))
    assert set(trained) == set(averaged)
    (folder / AVERAGE_MEASURES).unlink()  # of a run by an earlier version
    written = list[int]()
    make_runs(runs, benchmarks, after_each=lambda: written.append(1))
    assert len(written) == 1
    again = load_measures(folder / AVERAGE_MEASURES)
    assert all(np.array_equal(again[key], averaged[key]) for key in averaged)


def test_a_finished_run_is_not_made_again(
    toy_plan: ReproductionPlan,
    benchmarks: Benchmarks,
    finish: Finish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = first_runs(toy_plan)
    for run in runs:
        finish(run, 0.5)

    def train(config: TrainingConfig, *, share: object) -> Path:
        raise AssertionError(f"{config.name} was made again")

    monkeypatch.setattr(runner_module, "train", train)
    make_runs(runs, benchmarks, after_each=lambda: None)


def test_a_stopped_run_goes_on(
    toy_plan: ReproductionPlan, benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = first_runs(toy_plan)
    trained = list[str]()

    def train(config: TrainingConfig, *, share: Callable[[BatchSource], BatchSource]) -> Path:
        trained.append(config.name)
        if trained.count(RECIPE) == 1 and config.name == RECIPE:
            config.folder.mkdir()
            raise KeyboardInterrupt
        return real_train(config, share=share)

    monkeypatch.setattr(runner_module, "train", train)
    with pytest.raises(KeyboardInterrupt):
        make_runs(runs, benchmarks, after_each=lambda: None)
    make_runs(runs, benchmarks, after_each=lambda: None)
    assert trained == ["start", RECIPE, RECIPE]
    record = read_record(runs[1].config.folder)
    assert record is not None
    assert not record.is_whole  # its seconds are not the whole run's


def test_runs_of_other_settings_are_refused(
    toy_plan: ReproductionPlan, benchmarks: Benchmarks, finish: Finish
) -> None:
    runs = first_runs(toy_plan)
    for run in runs:
        finish(run, 0.5)
    longer = replace(toy_plan, scale=replace(toy_plan.scale, pretrain_steps=9))
    with pytest.raises(ValueError, match=r"made with other settings; choose another --runs"):
        make_runs(first_runs(longer), benchmarks, after_each=lambda: None)


def test_later_starts_take_the_first_ones_words(
    toy_plan: ReproductionPlan, benchmarks: Benchmarks
) -> None:
    starts = [run for run in toy_plan.all_runs([0, 1]) if run.variant == "start"]
    (starts[0].config.folder / "tokenizer").mkdir(parents=True)
    make_runs(starts[:1], benchmarks, after_each=lambda: None)
    (starts[0].config.folder / "text-tower.pt").write_bytes(b"a tower")
    make_runs(starts, benchmarks, after_each=lambda: None)
    first, second = (run.config.folder for run in starts)
    assert (second / "text-tower.pt").read_bytes() == b"a tower"
    files = [folder / "tokenizer/tokenizer.json" for folder in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()
