"""The sizes have exactly the parameters of the released checkpoints, as transformers loads them."""

import pytest
import torch
from transformers import Tipsv2Model

from model.variants import VARIANTS, variant


def meta_model(name: str, **settings: int) -> Tipsv2Model:
    """Build a model that has shapes and no storage."""
    with torch.device("meta"):
        return Tipsv2Model(VARIANTS[name].build(**settings))


def count(module: torch.nn.Module, *words: str) -> int:
    """Sum the parameters whose names have one of the words; without words all of them."""
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if not words or any(word in name for word in words)
    )


@pytest.mark.parametrize(
    ("name", "vision", "text"),
    [
        ("b14", 86_316_288, 109_632_000),
        ("l14", 304_016_384, 183_924_736),
        ("so400m14", 413_393_904, 448_332_912),
        ("g14", 1_135_952_384, 389_133_312),
    ],
)
def test_a_released_size_has_the_released_number_of_parameters(
    name: str, vision: int, text: int
) -> None:
    model = meta_model(name)
    assert count(model.vision_model) == vision
    assert count(model.text_model) == text
    # The temperature belongs to neither tower.
    assert count(model) == vision + text + 1


def test_the_small_size_has_the_first_generations_tower_on_the_larger_grid() -> None:
    model = meta_model("s14")
    assert count(model.vision_model) == 21_924_480
    assert count(model.text_model) == 33_582_336
    # The first generation had 16 x 16 places and one CLS token, and is published as 21.6M.
    first = meta_model("s14", native_size=224).vision_model
    essential = count(first) - count(first, "layer_scale", "mask_token", "register_tokens")
    assert round(essential / 1e6, 1) == 21.6


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    assert variant("s14") is VARIANTS["s14"]
    with pytest.raises(ValueError, match="s14, b14, l14, so400m14, g14"):
        variant("h14")
