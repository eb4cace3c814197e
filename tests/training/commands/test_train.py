"""`pretrain` and `distill` on folders of images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.__main__ import main
from training.config import ModelConfig

MakeImages = Callable[..., Path]
MakeTeacher = Callable[[ModelConfig], Path]
# Two blocks of the width of the teacher with the text tower that fits.
TINY = ModelConfig(dim=48, vision_layers=2, text_layers=1, heads=2, native_size=28)
WIDE = ModelConfig(dim=64, vision_layers=1, text_layers=1, heads=2, native_size=28)
SETTINGS = (
    *(f"model.{name}={getattr(TINY, name)}" for name in ("dim", "vision_layers", "text_layers")),
    *(f"model.{name}={getattr(TINY, name)}" for name in ("heads", "native_size")),
    "model.vocab_size=300",
    "data.crops.global_size=28",
    "data.crops.num_local=1",
    "data.crops.local_size=14",
    "data.num_workers=0",
)


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def call(job: str, tmp_path: Path, arguments: Sequence[object], *settings: str) -> int:
    """Two steps of two images at toy size."""
    overrides = [part for line in (*SETTINGS, *settings) for part in ("--set", line)]
    runs = ["--runs", f"{tmp_path}/runs", "--steps", "2", "--batch", "2"]
    return main([job, *(str(item) for item in arguments), *runs, *overrides])


def test_a_released_teacher_and_images_without_captions(
    make_teacher: MakeTeacher,
    make_images: MakeImages,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher, images = make_teacher(WIDE), make_images("bare")
    arguments = ["--teacher", teacher, "--images", images]
    assert call("distill", tmp_path, arguments) == 0
    student = tmp_path / "runs/distilled-bare-small/model"
    assert capsys.readouterr().out.splitlines()[-1] == f"The student is in {student}"
    assert Tipsv2Model.from_pretrained(student).vision_model.config.hidden_size == 48
    assert len(Tipsv2Tokenizer.from_pretrained(student)) == len(
        Tipsv2Tokenizer.from_pretrained(teacher)
    )


def test_without_captions_a_student_keeps_the_words_of_a_teacher_of_its_width(
    make_teacher: MakeTeacher, make_images: MakeImages, tmp_path: Path
) -> None:
    teacher, images = make_teacher(TINY), make_images("bare")
    arguments = ["--teacher", teacher, "--images", images, "--name", "mine"]
    assert call("distill", tmp_path, arguments, "method.text_start=teacher") == 0
    before, after = (
        Tipsv2Model.from_pretrained(folder).state_dict()
        for folder in (teacher, tmp_path / "runs/mine/model")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("text_model.") for name in changed)
    assert any(name.startswith("vision_model.encoder") for name in changed)


def test_a_run_as_teacher_and_images_with_captions(
    make_images: MakeImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images("captioned", captioned=4)
    assert call("pretrain", tmp_path, ["--images", images], "method.head.num_prototypes=24") == 0
    teacher = tmp_path / "runs/pretrained-captioned-small"
    arguments = ["--teacher", teacher, "--images", images]
    assert call("distill", tmp_path, arguments, "method.text_start=teacher") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "bridge: the teacher's 24 prototypes, with a new head for the student" in lines
    assert (tmp_path / "runs/distilled-captioned-small/model/model.safetensors").exists()


def test_mistakes_are_reported_in_one_line(
    make_teacher: MakeTeacher,
    make_images: MakeImages,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, empty = make_images("bare"), tmp_path / "empty"
    empty.mkdir()
    assert call("distill", tmp_path, ["--teacher", empty, "--images", images]) == 2
    assert f"error: no teacher in {empty}: give the folder" in capsys.readouterr().err
    assert call("distill", tmp_path, ["--teacher", make_teacher(WIDE), "--images", empty]) == 2
    assert f"error: {empty} holds no image" in capsys.readouterr().err
    assert call("pretrain", tmp_path, ["--images", images]) == 2
    assert "needs captions, which prevent a collapse of the encoder" in capsys.readouterr().err
