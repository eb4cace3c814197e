"""The sizes have exactly the parameters of the released checkpoints, as transformers loads them."""

import pytest
import torch
from transformers import Tipsv2Model

from model.variants import VARIANTS


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
