"""Whole runs on drawn shapes: a teacher, its student, and the files of each."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from tests.training.conftest import TINY_HEAD, make_tiny_config, use_few_scenes
from training import run as run_module
from training.config import TrainingConfig
from training.data.folder import DataFolder, seen_names
from training.methods import pretrain as pretrain_module
from training.methods.distill import DistillConfig
from training.methods.image_backbone import ImageBackboneConfig
from training.methods.pretrain import Pretrain, PretrainConfig
from training.methods.teacher import load_teacher
from training.observation import read_log
from training.pretrained import image_backbone as backbone_module
from training.run import (
    build_method,
    build_tokenizer,
    new_model,
    open_inputs,
    run,
    run_each,
)
from training.run_record import RECORD_FILE, as_json
from training.targets import Centering


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


def as_student(config: TrainingConfig, teacher: Path) -> TrainingConfig:
    method = DistillConfig(head=TINY_HEAD, text_locked_until=0.0)
    return replace(config, name="student", method=method, teacher=teacher)


def test_a_run_saves_model_heads_log_and_scores(finished: TrainingConfig) -> None:
    model = Tipsv2Model.from_pretrained(finished.folder / "model")
    tokenizer = Tipsv2Tokenizer.from_pretrained(finished.folder / "model")
    assert model.text_model.config.vocab_size == len(tokenizer)
    log = read_log(finished.folder)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert ["val/patches" in row for row in log] == [False, True, False, True]
    assert {"val/painted", "val-style/values_which"} <= set(log[-1])
    heads = torch.load(finished.folder / "heads.pt", weights_only=True)
    assert {name.split(".")[0] for name in heads} == {
        "head", "teacher_head", "centering", "global_centering", "contrast", "projection",
        "log_temperature",
    }  # fmt: skip


def test_configuration_and_memory_of_a_run_are_recorded(finished: TrainingConfig) -> None:
    record = json.loads((finished.folder / RECORD_FILE).read_text("utf-8"))
    (start,) = record["starts"]
    assert start["config"] == as_json(finished)
    planned, counted = start["state_bytes"], start["end"]["state_bytes"]
    parameters = build_method(finished, 300).parameters()
    assert 0 < planned["ema"] < planned["parameters"]
    assert planned["parameters"] > 4 * sum(p.numel() for p in parameters) - planned["ema"]
    assert counted["parameters"] == planned["parameters"]
    assert counted["ema"] == planned["ema"]
    # The image backbone's projection has no gradient here, and step counters are not planned.
    assert 0.5 * planned["optimizer"] < counted["optimizer"] < planned["optimizer"]


def test_a_finished_run_is_not_repeated(config: TrainingConfig, finished: TrainingConfig) -> None:
    shutil.copytree(finished.folder, config.folder)
    run(config)
    assert read_log(config.folder) == read_log(finished.folder)
    before, after = (c.folder / "model/model.safetensors" for c in (finished, config))
    assert before.read_bytes() == after.read_bytes()


def test_a_student_uses_its_teachers_tokenizer_and_head(
    config: TrainingConfig, finished: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "train_tokenizer", None)
    student = as_student(config, finished.folder)
    folder = run(student)
    assert "patch" in read_log(student.folder)[0]
    own, theirs = (
        Tipsv2Tokenizer.from_pretrained(path).get_vocab()
        for path in (folder, finished.folder / "model")
    )
    assert own == theirs
    teacher = load_teacher(finished.folder, TINY_HEAD)
    heads = torch.load(finished.folder / "heads.pt", weights_only=True)
    assert teacher.head is not None
    assert isinstance(teacher.centering, Centering)
    assert torch.equal(teacher.head.prototypes, heads["teacher_head.prototypes"])
    assert torch.equal(teacher.centering.centre_K, heads["centering.centre_K"])
    assert teacher.centering.centre_K.any()
    saved = Tipsv2Model.from_pretrained(finished.folder / "model").vision_model.state_dict()
    for name, value in teacher.vision_model.state_dict().items():
        assert torch.equal(value, saved[name]), name


def test_several_runs_train_one_after_the_other(config: TrainingConfig) -> None:
    with pytest.raises(ValueError, match="different names"):
        run_each([config, config])
    other = replace(config, name="other", seed=7)
    folders = run_each([config, other])
    assert folders == [config.folder / "model", other.folder / "model"]
    assert len({read_log(one.folder)[-1]["loss"] for one in (config, other)}) == 2


def test_a_run_starts_from_the_model_and_tokenizer_of_another(
    config: TrainingConfig, finished: TrainingConfig
) -> None:
    later = replace(config, name="later", start=finished.folder, seed=5, num_steps=1)
    run(later)
    own, theirs = (c.folder / "tokenizer/tokenizer.json" for c in (later, finished))
    assert own.read_bytes() == theirs.read_bytes()
    vocab_size = len(Tipsv2Tokenizer.from_pretrained(own.parent))
    started = build_method(later, vocab_size).model.state_dict()
    expected = Tipsv2Model.from_pretrained(finished.folder / "model").state_dict()
    assert all(torch.equal(started[key], expected[key]) for key in expected)


def built_state(config: TrainingConfig, finished: TrainingConfig) -> dict[str, torch.Tensor]:
    """The state of a method as it is built, without the model's; the tokenizer is `finished`'s."""
    vocab_size = len(Tipsv2Tokenizer.from_pretrained(finished.folder / "model"))
    state = build_method(config, vocab_size).state_dict()
    return {name: value for name, value in state.items() if not name.startswith("model.")}


def test_a_run_starts_from_the_heads_and_centres_of_another(
    config: TrainingConfig, finished: TrainingConfig
) -> None:
    saved = torch.load(finished.folder / "heads.pt", weights_only=True)
    assert saved["centering.centre_K"].any()
    later = replace(config, name="later", start=finished.folder, seed=5)
    started = built_state(later, finished)
    assert started.keys() == saved.keys()
    for name, value in started.items():
        assert torch.equal(value, saved[name]), name


def test_a_start_gives_only_the_heads_that_fit(
    config: TrainingConfig, finished: TrainingConfig
) -> None:
    saved = torch.load(finished.folder / "heads.pt", weights_only=True)
    later = replace(config, name="later", start=finished.folder, seed=5)
    assert isinstance(config.method, PretrainConfig)
    method = replace(config.method, head=replace(TINY_HEAD, num_prototypes=25))
    started, fresh = (
        built_state(replace(run, method=method), finished)
        for run in (later, replace(later, start=None))
    )
    for name, value in started.items():
        fits = name.split(".")[0] in ("contrast", "projection", "log_temperature")
        assert torch.equal(value, (saved if fits else fresh)[name]), name


def test_an_average_that_the_start_has_not_begins_at_what_it_averages(
    config: TrainingConfig, finished: TrainingConfig, tmp_path: Path
) -> None:
    copied = shutil.copytree(finished.folder, tmp_path / "copied")
    saved = torch.load(copied / "heads.pt", weights_only=True)
    without = {name: v for name, v in saved.items() if not name.startswith("teacher_head")}
    torch.save(without, copied / "heads.pt")
    started = built_state(replace(config, name="later", start=copied, seed=5), finished)
    assert torch.equal(started["teacher_head.prototypes"], saved["head.prototypes"])


def test_an_averaged_tower_follows_to_a_higher_resolution(
    config: TrainingConfig, finished: TrainingConfig, tmp_path: Path
) -> None:
    method = PretrainConfig(head=TINY_HEAD, ema="full")
    averaged = replace(config, name="later", method=method)
    copied = shutil.copytree(finished.folder, tmp_path / "copied")
    with torch.no_grad():
        tower = {
            f"teacher_tower.{name}": value + 0.5
            for name, value in build_method(finished, 300).model.vision_model.state_dict().items()
        }
    saved = torch.load(copied / "heads.pt", weights_only=True)
    torch.save({**saved, **tower}, copied / "heads.pt")
    larger = replace(averaged, start=copied, model=replace(config.model, native_size=70))
    started = built_state(larger, finished)
    positions = "teacher_tower.embeddings.position_embeddings"
    assert started[positions].shape[1] == 1 + 5 * 5
    assert torch.equal(started[positions][:, 0], tower[positions][:, 0])
    mask_token = "teacher_tower.embeddings.mask_token"
    assert torch.equal(started[mask_token], tower[mask_token])


def test_a_missing_teacher_or_start_is_an_error_before_training(
    config: TrainingConfig, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no teacher in .*: run its recipe first"):
        build_method(as_student(config, config.folder), 300)
    with pytest.raises(FileNotFoundError, match=r"no model to start from in .*: run"):
        build_method(replace(config, start=tmp_path), 300)


def test_the_same_seed_builds_the_same_model(config: TrainingConfig) -> None:
    first, again = (build_method(config, 300).state_dict() for _ in range(2))
    other = build_method(replace(config, seed=1), 300).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.prototypes"], other["head.prototypes"])
    assert isinstance(build_method(config, 300), Pretrain)


def test_mid_gray_is_the_zero_of_a_new_model(config: TrainingConfig) -> None:
    projection = new_model(config, 300).vision_model.embeddings.patch_embeddings.projection
    embedded = projection(torch.full((1, 3, 14, 14), 0.5))
    assert embedded.abs().max() < 1e-5


def test_a_tokenizer_is_trained_once_a_run(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.folder.mkdir(parents=True)
    config = replace(config, model=replace(config.model, vocab_size=2048))
    inputs = open_inputs(config)
    first = build_tokenizer(config, inputs)
    monkeypatch.setattr(run_module, "train_tokenizer", None)
    assert build_tokenizer(config, inputs).get_vocab() == first.get_vocab()
    # The corpus repeats every name often enough for a short encoding.
    assert all(len(first.tokenize(name)) <= 3 for name in seen_names())


def test_a_text_tower_is_warmed_up_once(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def warm_up(
        model: Tipsv2Model,
        tokenizer: Tipsv2Tokenizer,
        texts: Sequence[str],
        *,
        num_steps: int,
        seed: int,
    ) -> float:
        assert "art of the dog." in texts
        assert len(tokenizer) > 256
        assert seed == 0
        calls.append(num_steps)
        with torch.no_grad():
            model.text_model.final_layer_norm.bias.fill_(3.0)
        return 0.5

    monkeypatch.setattr(run_module, "warm_up_text_tower", warm_up)
    assert isinstance(config.method, PretrainConfig)
    warmed = replace(
        config,
        num_steps=2,
        text_warmup_steps=7,
        method=replace(config.method, text_locked_until=1.0),
        validate_every=0,
    )
    folder = run(warmed)
    # The tower is locked throughout, so it keeps the result of the warm-up.
    model = Tipsv2Model.from_pretrained(folder)
    assert (model.text_model.final_layer_norm.bias == 3.0).all()
    shutil.rmtree(warmed.folder / "checkpoints")
    run(warmed)
    assert calls == [7]


def test_the_backbone_axes_are_fitted_to_the_run_and_kept(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    class RandomBackbone:
        def encode_patches(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(pixels_B3HW.shape))
            generator = torch.Generator().manual_seed(len(seen))
            return torch.randn(len(pixels_B3HW), 4, 12, generator=generator)

    monkeypatch.setattr(backbone_module, "FrozenImageBackbone", RandomBackbone)
    for module in (run_module, pretrain_module):
        monkeypatch.setattr(module, "TARGET_WIDTH", 8)
    monkeypatch.setattr(run_module, "_BASIS_BATCHES", 2)
    backbone = ImageBackboneConfig(weight=1.0, scenes_until=1.0)
    assert isinstance(config.method, PretrainConfig)
    method = replace(config.method, image_backbone=backbone)
    config = replace(config, method=method, num_steps=2, validate_every=0)
    run(config)
    assert all("image_backbone" in row for row in read_log(config.folder))
    assert seen == [(4, 3, 28, 28)] * (2 + 2)  # two batches for the axes, then one each step
    axes = (config.folder / "image-backbone-basis.pt").read_bytes()
    run(replace(config, num_steps=3))
    assert len(seen) == 2 + 3
    assert (config.folder / "image-backbone-basis.pt").read_bytes() == axes
