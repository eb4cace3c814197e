"""A whole run on drawn shapes: teacher, then student, and the files that each leaves behind."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training import run as run_module
from training.config import TrainingConfig
from training.data.crops import CropConfig
from training.data.folder import DataFolder, seen_names
from training.data.shards.batches import ShardsConfig
from training.evaluate.sets import development_benchmarks
from training.heads import HeadConfig
from training.inputs import scenes as scene_inputs
from training.methods import pretrain as pretrain_module
from training.methods.distill import DistillConfig
from training.methods.image_backbone import ImageBackboneConfig
from training.methods.pretrain import Pretrain
from training.methods.teacher import load_teacher
from training.pretrained import image_backbone as backbone_module
from training.run import build_method, build_tokenizer, new_model, open_inputs, run
from training.run_record import RECORD_FILE, as_json, read_configs
from training.targets import Centering

HEAD = HeadConfig(hidden=32, bottleneck=16, num_prototypes=24)


@pytest.fixture
def config(
    tiny_config: TrainingConfig, data_folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> TrainingConfig:
    """The tiny run on the drawn data, with few scenes for tokenizer and validation."""
    monkeypatch.setattr(scene_inputs, "_TOKENIZER_SCENES", 10)
    few = partial(development_benchmarks, num_scenes=2)
    monkeypatch.setattr(scene_inputs, "development_benchmarks", few)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    data = replace(tiny_config.data, folder=data_folder.path)
    return replace(tiny_config, data=data, num_steps=4, validate_every=2)


@pytest.fixture
def student_config(config: TrainingConfig) -> TrainingConfig:
    """A student of the tiny run."""
    method = DistillConfig(head=HEAD, text_locked_until=0.0)
    return replace(config, name="student", method=method, teacher=config.folder)


def log(config: TrainingConfig) -> list[dict[str, float]]:
    lines = (config.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_leaves_what_a_student_and_an_export_need(config: TrainingConfig) -> None:
    folder = run(config)
    assert folder == config.folder / "model"
    model = Tipsv2Model.from_pretrained(folder)
    tokenizer = Tipsv2Tokenizer.from_pretrained(folder)
    assert model.text_model.config.vocab_size == len(tokenizer)
    (recorded,) = read_configs(config.folder)
    assert recorded == as_json(config)
    assert [row["step"] for row in log(config)] == [1, 2, 3, 4]
    assert ["val/patches" in row for row in log(config)] == [False, True, False, True]
    assert {"val/painted", "val-style/values_which"} <= set(log(config)[-1])
    heads = torch.load(config.folder / "heads.pt", weights_only=True)
    assert {name.split(".")[0] for name in heads} == {
        "head", "teacher_head", "centering", "global_centering", "contrast", "projection"
    }  # fmt: skip


def test_the_memory_of_a_run_is_recorded(config: TrainingConfig) -> None:
    run(config)
    record = json.loads((config.folder / RECORD_FILE).read_text("utf-8"))
    (start,) = record["starts"]
    planned, counted = start["state_bytes"], start["end"]["state_bytes"]
    parameters = build_method(config, 300).parameters()
    assert 0 < planned["ema"] < planned["parameters"]
    assert planned["parameters"] > 4 * sum(p.numel() for p in parameters) - planned["ema"]
    assert counted["parameters"] == planned["parameters"]
    assert counted["ema"] == planned["ema"]
    # Nothing trained the image backbone's projection here, and step counters are not in the plan.
    assert 0.5 * planned["optimizer"] < counted["optimizer"] < planned["optimizer"]


def test_a_finished_run_is_not_run_again(config: TrainingConfig) -> None:
    run(config)
    weights = (config.folder / "model/model.safetensors").read_bytes()
    run(config)
    assert len(log(config)) == 4
    assert (config.folder / "model/model.safetensors").read_bytes() == weights


def test_a_student_takes_its_teachers_tokenizer_and_head(
    config: TrainingConfig, student_config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)
    monkeypatch.setattr(run_module, "train_tokenizer", None)
    folder = run(student_config)
    assert "patch" in log(student_config)[0]
    vocabularies = [
        Tipsv2Tokenizer.from_pretrained(path).get_vocab()
        for path in (folder, config.folder / "model")
    ]
    assert vocabularies[0] == vocabularies[1]
    teacher = load_teacher(config.folder, HEAD)
    heads = torch.load(config.folder / "heads.pt", weights_only=True)
    assert teacher.head is not None
    assert isinstance(teacher.centering, Centering)
    assert torch.equal(teacher.head.prototypes, heads["teacher_head.prototypes"])
    assert torch.equal(teacher.centering.centre_K, heads["centering.centre_K"])
    assert teacher.centering.centre_K.any()
    saved = Tipsv2Model.from_pretrained(config.folder / "model").state_dict()
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, saved[name]), name


def test_a_student_without_a_teacher_says_so_at_the_start(student_config: TrainingConfig) -> None:
    assert isinstance(student_config.method, DistillConfig)
    later = replace(student_config, method=replace(student_config.method, patch_from=0.3))
    for config in (student_config, later):
        with pytest.raises(FileNotFoundError, match="run its recipe first"):
            build_method(config, 300)


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
    # Every name that training uses was in the corpus often enough to be short.
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
    warmed = replace(
        config,
        text_warmup_steps=7,
        method=replace(config.method, text_locked_until=1.0),
        validate_every=0,
    )
    folder = run(warmed)
    assert calls == [7]
    # Locked throughout, so the tower is what the warm-up made it.
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
    config = replace(
        config, method=replace(config.method, image_backbone=backbone), validate_every=0
    )
    run(config)
    assert all("image_backbone" in row for row in log(config))
    image = (*seen[0],)
    assert seen == [image] * (2 + config.num_steps)
    axes = (config.folder / "image-backbone-basis.pt").read_bytes()
    run(replace(config, num_steps=6))
    assert seen == [image] * (2 + 6)
    assert (config.folder / "image-backbone-basis.pt").read_bytes() == axes


def test_a_run_starts_from_the_model_and_tokenizer_of_another(config: TrainingConfig) -> None:
    run(config)
    later = replace(config, name="later", start=config.folder, seed=5)
    vocab_size = len(build_tokenizer(config, open_inputs(config)))
    started = build_method(later, vocab_size).model.state_dict()
    finished = Tipsv2Model.from_pretrained(config.folder / "model").state_dict()
    assert all(torch.equal(started[key], finished[key]) for key in finished)
    run(later)
    tokenizers = [folder / "tokenizer/tokenizer.json" for folder in (config.folder, later.folder)]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


def test_a_start_that_is_not_finished_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model to start from in .*: run"):
        build_method(replace(config, start=tmp_path), 400)


def test_a_run_on_images_takes_its_words_from_the_captions(
    config: TrainingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 30), (40 * number, 90, 120)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("an image of a plain wall", encoding="utf-8")
    crops = CropConfig(global_size=28, num_local=1, local_size=14)
    data = ShardsConfig(folder=folder, crops=crops, num_workers=0)
    path = run(replace(config, data=data, num_steps=2, batch_size=2, accumulate=2))
    assert capsys.readouterr().out.startswith(f"data: 5 images in {folder}, a plain folder, ")
    tokenizer = Tipsv2Tokenizer.from_pretrained(path)
    assert len(tokenizer.tokenize("image wall")) == 2
    assert {"cls1", "cls2", "dino"} <= set(log(replace(config, data=data))[0])
