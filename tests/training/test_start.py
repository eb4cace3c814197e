"""A run that starts from another model: of the same size, or a second stage at a finer grid."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Tipsv2Config, Tipsv2Model

from model.features import vision_tokens
from training.config import ModelConfig
from training.start import load_start

SIZE = ModelConfig(dim=24, vision_layers=2, text_layers=1, heads=2, native_size=56)
POSITIONS = "vision_model.embeddings.position_embeddings"


def new_model(size: ModelConfig, *, seed: int) -> Tipsv2Model:
    torch.manual_seed(seed)
    config: Tipsv2Config = size.build(50)
    model: Tipsv2Model = Tipsv2Model(config).eval()
    with torch.no_grad():  # fresh positions are nearly nothing
        model.vision_model.embeddings.position_embeddings.normal_()
    return model


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    new_model(SIZE, seed=0).save_pretrained(tmp_path / "run/model")
    return tmp_path / "run"


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_run_or_a_model_of_the_same_size_is_taken_over(finished: Path, inside: str) -> None:
    model = new_model(SIZE, seed=1)
    load_start(model, finished / inside)
    for name, value in new_model(SIZE, seed=0).state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("native_size", [112, 84, 28])
@torch.no_grad()
def test_a_finer_grid_sees_its_own_size_as_the_old_model_did(
    finished: Path, native_size: int
) -> None:
    """The old one stretches its grid at each forward pass, the new one has been stretched once."""
    model = new_model(replace(SIZE, native_size=native_size), seed=1)
    load_start(model, finished)
    old = new_model(SIZE, seed=0)
    side = native_size // 14
    assert model.state_dict()[POSITIONS].shape == (1, 1 + side * side, 24)
    assert torch.equal(model.state_dict()[POSITIONS][:, 0], old.state_dict()[POSITIONS][:, 0])
    pixels_B3HW = torch.rand(2, 3, native_size, native_size)
    seen, expected = vision_tokens(model, pixels_B3HW), vision_tokens(old, pixels_B3HW)
    assert torch.allclose(seen.patches_BND, expected.patches_BND, atol=1e-5)
    assert torch.allclose(seen.cls1_BD, expected.cls1_BD, atol=1e-5)
    assert torch.allclose(seen.cls2_BD, expected.cls2_BD, atol=1e-5)
    # The grid is what is learnt on: a step of the second stage moves all of it.
    with torch.enable_grad():
        vision_tokens(model, pixels_B3HW).patches_BND.square().sum().backward()
    gradient = model.vision_model.embeddings.position_embeddings.grad
    assert gradient is not None
    assert (gradient[0, 1:].abs().sum(-1) > 0).all()


def test_a_plain_grid_stays_plain_and_a_slope_a_slope(finished: Path, tmp_path: Path) -> None:
    old = new_model(SIZE, seed=0)
    slope_N = torch.arange(4.0).repeat(4)  # by column
    with torch.no_grad():
        old.vision_model.embeddings.position_embeddings[0, 1:] = slope_N[:, None]
    old.save_pretrained(tmp_path / "slope")
    model = new_model(replace(SIZE, native_size=112), seed=1)
    load_start(model, tmp_path / "slope")
    grid = model.state_dict()[POSITIONS][0, 1:, 0].view(8, 8)
    middle = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])  # centres at quarters
    assert torch.allclose(grid, middle.expand(8, 8), atol=1e-6)


@pytest.mark.parametrize(
    "size",
    [replace(SIZE, dim=48), replace(SIZE, vision_layers=3), replace(SIZE, text_layers=2)],
    ids=["width", "vision", "text"],
)
def test_another_size_is_refused(finished: Path, size: ModelConfig) -> None:
    model = new_model(size, seed=1)
    with pytest.raises(ValueError, match=r"only model\.native_size may change"):
        load_start(model, finished)


def test_nothing_to_start_from_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model to start from in .*: run its recipe"):
        load_start(new_model(SIZE, seed=1), tmp_path)
