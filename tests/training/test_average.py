"""The mean of models, of runs and of checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.__main__ import MISTAKE, main
from training.checkpoint import save_checkpoint
from training.config import TrainingConfig
from training.run import new_model


def save(model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, folder: Path) -> Path:
    """The model as a run leaves it."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def test_the_mean_lies_between_its_models(
    student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, tmp_path: Path
) -> None:
    first = save(student_model, tokenizer, tmp_path / "a")
    with torch.no_grad():
        for parameter in student_model.parameters():
            parameter.add_(1.0)
    second = save(student_model, tokenizer, tmp_path / "b")
    output = tmp_path / "mean"
    arguments = ["average", str(first), str(second), "--output", str(output)]
    assert main([*arguments, "--share", "0.25"]) == 0
    mean = Tipsv2Model.from_pretrained(output).state_dict()
    begin = Tipsv2Model.from_pretrained(first / "model").state_dict()
    assert all(torch.allclose(mean[key], begin[key] + 0.25, atol=1e-5) for key in begin)
    assert Tipsv2Tokenizer.from_pretrained(output).get_vocab() == tokenizer.get_vocab()


def test_models_count_equally_and_checkpoints_are_models(
    student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, tmp_path: Path
) -> None:
    run = save(student_model, tokenizer, tmp_path / "run")
    begin = {key: value.clone() for key, value in student_model.state_dict().items()}
    method = nn.ModuleDict({"model": student_model})
    for step, change in ((1, 1.0), (2, 3.0), (3, 1.0)):  # to +1, +4 and +5
        with torch.no_grad():
            for parameter in student_model.parameters():
                parameter.add_(change)
        save_checkpoint(run, step=step, method=method, optimizers=(), keep=3)
    checkpoints = sorted(str(path) for path in (run / "checkpoints").iterdir())
    assert len(checkpoints) == 3
    output = tmp_path / "mean"
    assert main(["average", *checkpoints, str(run), "--output", str(output)]) == 0
    mean = Tipsv2Model.from_pretrained(output).state_dict()
    assert all(torch.allclose(mean[key], begin[key] + 2.5, atol=1e-5) for key in begin)
    assert Tipsv2Tokenizer.from_pretrained(output).get_vocab() == tokenizer.get_vocab()


def test_a_mean_needs_two_models_and_a_share_exactly_two(
    student_model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(save(student_model, tokenizer, tmp_path / "run"))
    output = ["--output", str(tmp_path / "mean")]
    assert main(["average", run, *output]) == MISTAKE
    assert "two models or more" in capsys.readouterr().err
    assert main(["average", run, run, run, "--share", "0.5", *output]) == MISTAKE
    assert "--share is for two models" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_only_models_of_one_size_are_averaged(
    tiny_config: TrainingConfig,
    tokenizer: Tipsv2Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = save(new_model(tiny_config, len(tokenizer)), tokenizer, tmp_path / "a")
    wide = replace(tiny_config, model=replace(tiny_config.model, dim=96))
    wider = save(new_model(wide, len(tokenizer)), tokenizer, tmp_path / "wider")
    output = ["--output", str(tmp_path / "mean")]
    for second, share, message in (
        (wider, "0.5", "different sizes"),
        (tmp_path / "none", "0.5", "no model with its tokenizer"),
        (first, "2", "0..1"),
    ):
        assert main(["average", str(first), str(second), "--share", share, *output]) == MISTAKE
        assert message in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
