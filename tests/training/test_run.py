"""Whole runs on drawn shapes: a teacher, its student, and the files of each."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]
from torch import Tensor
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.runtime.machine import CpuFeature, Hardware
from tests.training.conftest import TINY_HEAD, make_tiny_config, use_few_scenes
from training import run as run_module
from training.config import TrainingConfig
from training.data.folder import DataFolder
from training.methods.distill import DistillConfig
from training.methods.teacher import load_teacher
from training.observation import read_log
from training.run import build_method, run
from training.run_record import RECORD_FILE, as_json


def on_drawings(data_folder: DataFolder, root: Path) -> TrainingConfig:
    """Four steps of the tiny run, scored twice."""
    tiny = make_tiny_config(root)
    data = replace(tiny.data, folder=data_folder.path)
    return replace(tiny, data=data, num_steps=4, validate_every=2)


@pytest.fixture
def config(
    data_folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainingConfig:
    """The run below the test's folder."""
    use_few_scenes(monkeypatch)
    return on_drawings(data_folder, tmp_path)


@pytest.fixture(scope="module")
def finished(data_folder: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    """The run when it is finished. Do not change its files."""
    config = on_drawings(data_folder, tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        use_few_scenes(patch)
        assert run(config) == config.folder / "model"
    return config


def heads_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / "heads.pt", weights_only=True)
    return found


def test_a_run_saves_model_heads_log_scores_and_record(finished: TrainingConfig) -> None:
    model = Tipsv2Model.from_pretrained(finished.folder / "model")
    tokenizer = Tipsv2Tokenizer.from_pretrained(finished.folder / "model")
    assert model.text_model.config.vocab_size == len(tokenizer)
    log = read_log(finished.folder)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert ["val/patches" in row for row in log] == [False, True, False, True]
    assert {"val/painted", "val-style/values_which"} <= set(log[-1])
    assert {name.split(".")[0] for name in heads_of(finished.folder)} == {
        "head", "teacher_head", "centering", "global_centering", "contrast", "projection",
        "log_temperature",
    }  # fmt: skip
    (start,) = json.loads((finished.folder / RECORD_FILE).read_text("utf-8"))["starts"]
    assert start["config"] == as_json(finished)
    assert "time" in start["end"]
    board = event_accumulator.EventAccumulator(str(finished.folder / "tensorboard")).Reload()
    losses = {event.step: event.value for event in board.Scalars("train/loss")}
    assert {row["step"]: row["loss"] for row in log} == pytest.approx(losses)
    assert [event.step for event in board.Scalars("score/val/patches")] == [2, 4]


@pytest.mark.parametrize(
    ("first", "then", "chosen"),
    [((), ("bf16",), ("float32", "adamw")), (("bf16",), (), ("bfloat16", "muon"))],
)
def test_auto_follows_the_hardware_and_stays_on_another_machine(
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: tuple[CpuFeature, ...],
    then: tuple[CpuFeature, ...],
    chosen: tuple[str, str],
) -> None:
    config = replace(
        config, precision="auto", optim=replace(config.optim, optimizer="auto"), validate_every=0
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for features in (first, then):
        hardware = Hardware(cpu_features=frozenset(features))
        monkeypatch.setattr(run_module, "this_hardware", lambda hardware=hardware: hardware)
        run(config)
        shutil.rmtree(config.folder / "model")
    starts = json.loads((config.folder / RECORD_FILE).read_text("utf-8"))["starts"]
    found = [(one["config"]["precision"], one["config"]["optim"]["optimizer"]) for one in starts]
    assert found == [chosen, chosen]
    printed = capsys.readouterr().out
    precision, optimizer = chosen
    assert printed.count(f"precision={precision}, optim.optimizer={optimizer}: ") == 2
    assert ": as the run began" in printed


def test_a_finished_run_is_not_repeated(config: TrainingConfig, finished: TrainingConfig) -> None:
    shutil.copytree(finished.folder, config.folder)
    run(config)
    assert read_log(config.folder) == read_log(finished.folder)
    before, after = (c.folder / "model/model.safetensors" for c in (finished, config))
    assert before.read_bytes() == after.read_bytes()


def test_a_student_uses_its_teachers_tokenizer_head_and_centre(
    config: TrainingConfig, finished: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "train_tokenizer", None)
    student = replace(config, method=DistillConfig(head=TINY_HEAD), teacher=finished.folder)
    folder = run(student)
    assert "patch" in read_log(student.folder)[0]
    own, theirs = (
        Tipsv2Tokenizer.from_pretrained(path).get_vocab()
        for path in (folder, finished.folder / "model")
    )
    assert own == theirs
    teacher, heads = load_teacher(finished.folder, TINY_HEAD), heads_of(finished.folder)
    assert teacher.head is not None
    assert teacher.centering is not None
    assert torch.equal(teacher.head.prototypes, heads["teacher_head.prototypes"])
    assert heads["centering.centre_K"].any()
    assert torch.equal(teacher.centering.state_dict()["centre_K"], heads["centering.centre_K"])
    saved = Tipsv2Model.from_pretrained(finished.folder / "model").vision_model.state_dict()
    for name, value in teacher.vision_model.state_dict().items():
        assert torch.equal(value, saved[name]), name


def built(config: TrainingConfig, finished: TrainingConfig) -> dict[str, Tensor]:
    """The state of a method as it is built; the tokenizer is `finished`'s."""
    vocab_size = len(Tipsv2Tokenizer.from_pretrained(finished.folder / "model"))
    return build_method(config, vocab_size).state_dict()


def test_a_run_starts_from_the_model_heads_and_tokenizer_of_another(
    config: TrainingConfig, finished: TrainingConfig
) -> None:
    later = replace(config, name="later", start=finished.folder, seed=5, num_steps=1)
    started = built(later, finished)
    model = Tipsv2Model.from_pretrained(finished.folder / "model").state_dict()
    expected = {f"model.{name}": value for name, value in model.items()}
    expected |= heads_of(finished.folder)
    assert started.keys() == expected.keys()
    for name, value in started.items():
        assert torch.equal(value, expected[name]), name
    run(later)
    own, theirs = (c.folder / "tokenizer/tokenizer.json" for c in (later, finished))
    assert own.read_bytes() == theirs.read_bytes()


def test_a_missing_teacher_or_start_is_an_error_before_training(
    config: TrainingConfig, tmp_path: Path
) -> None:
    student = replace(config, method=DistillConfig(head=TINY_HEAD), teacher=config.folder)
    for wrong in (student, replace(config, start=tmp_path)):
        with pytest.raises(FileNotFoundError, match=r"no model in .* run its recipe first"):
            build_method(wrong, 300)
