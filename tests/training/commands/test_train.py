"""`pretrain` and `distill` on folders of images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.__main__ import main
from training.config import ModelConfig, TrainingConfig
from training.run import new_model

MakeImages = Callable[..., Path]
MakeTeacher = Callable[[ModelConfig], Path]
# Two blocks of the width of the teacher with the text tower that fits.
TINY = ModelConfig(dim=48, vision_layers=2, text_layers=1, heads=2, native_size=28)
WIDE = ModelConfig(dim=64, vision_layers=1, text_layers=1, heads=2, native_size=28)
SIZES = ("dim", "vision_layers", "text_layers", "heads", "native_size")
SETTINGS = (
    *(f"model.{name}={getattr(TINY, name)}" for name in SIZES),
    "model.vocab_size=300",
    "data.crops.global_size=28",
    "data.crops.num_local=1",
    "data.crops.local_size=14",
    "data.num_workers=0",
    "precision=float32",
)


@pytest.fixture
def make_teacher(
    tiny_config: TrainingConfig, tokenizer: Tipsv2Tokenizer, tmp_path: Path
) -> MakeTeacher:
    """Save an untrained model and its tokenizer like a released one."""

    def make(size: ModelConfig) -> Path:
        folder = tmp_path / f"teacher-{size.dim}"
        model = new_model(replace(tiny_config, model=size), len(tokenizer))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def call(job: str, tmp_path: Path, arguments: Sequence[object], *settings: str) -> int:
    """Run two steps of two images at toy size."""
    overrides = [part for line in (*SETTINGS, *settings) for part in ("--set", line)]
    runs = ["--runs", f"{tmp_path}/runs", "--steps", "2", "--batch", "2"]
    return main([job, *(str(item) for item in arguments), *runs, *overrides])


def test_a_released_teacher_is_distilled_on_images_without_captions(
    make_teacher: MakeTeacher, make_images: MakeImages, tmp_path: Path
) -> None:
    teacher, images = make_teacher(WIDE), make_images("bare")
    assert call("distill", tmp_path, ["--teacher", teacher, "--images", images]) == 0
    student = tmp_path / "runs/distilled-bare-small/model"
    assert Tipsv2Model.from_pretrained(student).vision_model.config.hidden_size == 48
    own, theirs = (Tipsv2Tokenizer.from_pretrained(folder) for folder in (student, teacher))
    assert len(own) == len(theirs)


def test_a_pretrained_run_is_the_teacher_on_images_with_captions(
    make_images: MakeImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(captioned=4)
    settings = ("method.head.num_prototypes=24", "accumulate=2")
    assert call("pretrain", tmp_path, ["--images", images], *settings) == 0
    teacher = tmp_path / "runs/pretrained-images-small"
    arguments = ["--teacher", teacher, "--images", images]
    assert call("distill", tmp_path, arguments, "method.text_start=teacher") == 0
    assert "patches learn the teacher's 24 prototypes" in capsys.readouterr().out
    assert (tmp_path / "runs/distilled-images-small/model/model.safetensors").exists()


def test_a_wrong_folder_or_number_is_reported_in_one_line(
    make_teacher: MakeTeacher,
    make_images: MakeImages,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, empty = make_images(), tmp_path / "empty"
    empty.mkdir()
    assert call("distill", tmp_path, ["--teacher", empty, "--images", images]) == 2
    assert f"error: no model in {empty} (yet)" in capsys.readouterr().err
    assert call("distill", tmp_path, ["--teacher", make_teacher(WIDE), "--images", empty]) == 2
    assert f"error: {empty} holds no image" in capsys.readouterr().err
    assert main(["pretrain", "--images", str(images), "--steps", "0"]) == 2
    assert capsys.readouterr().err.endswith("\nerror: steps: Input should be greater than 0\n")
    assert call("pretrain", tmp_path, ["--images", images]) == 2
    assert "needs captions, which prevent a collapse of the encoder" in capsys.readouterr().err
