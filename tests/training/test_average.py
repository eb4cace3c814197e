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


def add(model: Tipsv2Model, change: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(change)


def test_models_and_checkpoints_are_averaged(
    student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, tmp_path: Path
) -> None:
    run = save(student_model, tokenizer, tmp_path / "run")
    begin = {key: value.clone() for key, value in student_model.state_dict().items()}
    method = nn.ModuleDict({"model": student_model})
    for step, change in ((1, 1.0), (2, 3.0), (3, 1.0)):  # to +1, +4 and +5
        add(student_model, change)
        save_checkpoint(run, step=step, method=method, optimizers=(), keep=3)
    checkpoints = sorted(str(path) for path in (run / "checkpoints").iterdir())
    for models, mean in (
        ([*checkpoints, str(run)], 2.5),
        ([str(run), checkpoints[1], "--share", "0.25"], 1.0),
    ):
        output = tmp_path / str(mean)
        assert main(["average", *models, "--output", str(output)]) == 0
        found = Tipsv2Model.from_pretrained(output).state_dict()
        assert all(torch.allclose(found[key], begin[key] + mean, atol=1e-5) for key in begin)
        assert Tipsv2Tokenizer.from_pretrained(output).get_vocab() == tokenizer.get_vocab()


def test_only_models_of_one_size_are_averaged(
    tiny_config: TrainingConfig,
    tokenizer: Tipsv2Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(save(new_model(tiny_config, len(tokenizer)), tokenizer, tmp_path / "a"))
    wide = replace(tiny_config, model=replace(tiny_config.model, dim=96))
    wider = str(save(new_model(wide, len(tokenizer)), tokenizer, tmp_path / "wider"))
    for models, message in (
        ([run], "two models or more"),
        ([run, run, run, "--share", "0.5"], "--share is for two models"),
        ([run, run, "--share", "2"], "0..1"),
        ([run, wider], "different sizes"),
        ([run, str(tmp_path / "none")], "no model in"),
    ):
        assert main(["average", *models, "--output", str(tmp_path / "mean")]) == MISTAKE
        assert message in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
