"""Training and measuring the planned runs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.encoder import Tipsv2Encoder
from training.config import TrainingConfig
from training.data.batch import Batch
from training.data.folder import DataFolder
from training.data.loader import SceneBatches
from training.reproduce import runner as runner_module
from training.reproduce.plan import RECIPE, PlannedRun, ReproductionPlan
from training.reproduce.runner import (
    AVERAGE_MEASURES,
    KINDS,
    LARGEST,
    MEASURES,
    PAINTED,
    RETRIEVAL,
    BatchMemory,
    Benchmarks,
    counts_of,
    load_measures,
    make_benchmarks,
    make_runs,
    measure,
    read_record,
    save_measures,
)
from training.run import run as real_train
from training.trainer import BatchSource

MakeBatches = Callable[..., SceneBatches]

Finish = Callable[[PlannedRun, float], None]


@pytest.fixture
def benchmarks(data_folder: DataFolder) -> Benchmarks:
    """Four scenes in each test set."""
    return make_benchmarks(data_folder, size=28, num_scenes=4)


def first_runs(plan: ReproductionPlan) -> list[PlannedRun]:
    """The contrastive start and iBOT++."""
    return plan.all_runs([0])[:2]


def test_measures_and_a_record_of_a_run_are_written(
    toy_plan: ReproductionPlan, benchmarks: Benchmarks
) -> None:
    written = list[int]()
    runs = first_runs(toy_plan)
    make_runs(runs, benchmarks, after_each=lambda: written.append(1))
    start, recipe = (run.config.folder for run in runs)
    assert len(written) == 2
    assert not (start / MEASURES).exists()  # no table shows it
    assert load_measures(recipe / MEASURES)["seen/patches/chosen_S"].shape == (4,)
    record = read_record(recipe)
    assert record is not None
    assert record.is_whole
    assert record.num_images == 8
    assert record.cpu_s > 0


def test_the_averaged_encoder_is_measured_too(
    toy_plan: ReproductionPlan, benchmarks: Benchmarks
) -> None:
    runs = [run for run in toy_plan.all_runs([0]) if run.variant in ("start", "full-ema")]
    make_runs(runs, benchmarks, after_each=lambda: None)
    folder = runs[1].config.folder
    trained, averaged = (load_measures(folder / name) for name in (MEASURES, AVERAGE_MEASURES))
    assert set(trained) == set(averaged)
    (folder / AVERAGE_MEASURES).unlink()  # as after a crash
    written = list[int]()
    make_runs(runs, benchmarks, after_each=lambda: written.append(1))
    assert len(written) == 1
    again = load_measures(folder / AVERAGE_MEASURES)
    assert all(np.array_equal(again[key], averaged[key]) for key in averaged)


def test_a_finished_run_is_not_repeated_and_other_settings_are_refused(
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
    longer = replace(toy_plan, scale=replace(toy_plan.scale, pretrain_steps=9))
    with pytest.raises(ValueError, match=r"made with other settings; choose another --runs"):
        make_runs(first_runs(longer), benchmarks, after_each=lambda: None)


def test_a_stopped_run_is_resumed(
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


def test_later_starts_copy_tokenizer_and_text_tower_of_the_first(
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


def test_all_rows_are_measured_and_kept(
    benchmarks: Benchmarks,
    student_model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    tmp_path: Path,
) -> None:
    measures = measure(Tipsv2Encoder(student_model.eval(), tokenizer), benchmarks)
    save_measures(measures, tmp_path / "measures.npz")
    again = load_measures(tmp_path / "measures.npz")
    assert set(again) == set(measures)
    for scenes in ("val", "seen", "unseen"):
        for row in (*KINDS, PAINTED, LARGEST):
            counts = counts_of(again, scenes, row)
            assert len(counts) == (2 if scenes == "val" else 4)
            assert counts.truth_SK.sum() == counts.called_SK.sum()
        assert (
            counts_of(again, scenes, LARGEST).which() > counts_of(again, scenes, "chance").which()
        )
        for direction in RETRIEVAL:
            assert set(again[f"{scenes}/retrieval/{direction}"]) <= {0.0, 1.0}


class CountedSource:
    """Batches that record the steps that were read."""

    def __init__(self, batches: SceneBatches) -> None:
        self.batches, self.made = batches, list[int]()

    def loader(self, first_step: int, *, num_workers: int) -> Iterator[Batch]:
        for step in range(first_step, len(self.batches)):
            self.made.append(step)
            yield self.batches[step]


@pytest.fixture
def counted(make_batches: MakeBatches) -> CountedSource:
    """Six tiny batches."""
    return CountedSource(make_batches(num_steps=6))


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.pixels_B3HW, b.pixels_B3HW) and torch.equal(a.cls1_ids_T, b.cls1_ids_T)


def test_later_runs_reuse_the_batches_of_a_stream(counted: CountedSource) -> None:
    memory = BatchMemory()

    def read(stream: str, first_step: int, count: int) -> list[Batch]:
        batches = memory.share(stream, counted).loader(first_step, num_workers=0)
        return list(islice(batches, count))

    read("a", 0, 2)  # a stopped run
    first = read("a", 0, 6)
    assert counted.made == [0, 1, 2, 3, 4, 5]
    again = read("a", 3, 6)
    assert counted.made == [0, 1, 2, 3, 4, 5]
    assert len(again) == 3
    assert all(same(a, b) for a, b in zip(again, first[3:], strict=True))
    # Pixels are kept as 8-bit without loss.
    assert all(same(batch, counted.batches[step]) for step, batch in enumerate(first))
    assert first[0].pixels_B3HW.dtype == torch.uint8
    # Only the latest stream is kept.
    read("b", 0, 1)
    read("a", 0, 1)
    assert counted.made[6:] == [0, 0]
