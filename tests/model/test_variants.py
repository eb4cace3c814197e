"""The family's sizes have exactly the parameters of the released checkpoints.

The released totals were counted on the official checkpoints' layout, as transformers loads it. It
holds more than the network needs, and the second test takes these extras apart: the LayerScale
gammas, which the original network lacks and which are all ones; the mask token; and slot 0 of the
position table, which the original never adds to a CLS token.
"""

import pytest
import torch
from transformers import Tipsv2Model

from model.variants import VARIANTS, variant


def meta_model(name: str, **settings: int) -> Tipsv2Model:
    """Build a model that has shapes and no storage."""
    with torch.device("meta"):
        return Tipsv2Model(VARIANTS[name].build(**settings))


def count(module: torch.nn.Module, *words: str) -> int:
    """Sum the parameters whose names have one of the words in them; all of them without words."""
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


@pytest.mark.parametrize(
    ("name", "gammas"),
    [("s14", 9_216), ("b14", 18_432), ("l14", 49_152), ("so400m14", 62_208), ("g14", 122_880)],
)
def test_what_the_layout_holds_beyond_the_original_network(name: str, gammas: int) -> None:
    size, tower = VARIANTS[name], meta_model(name).vision_model
    assert gammas == 2 * size.vision_layers * size.width
    assert count(tower, "layer_scale") == gammas
    assert count(tower, "mask_token") == size.width
    places, slot_0 = 32 * 32, 1
    assert count(tower, "position_embeddings") == (places + slot_0) * size.width
    # Two CLS tokens, the second stored where DINOv2 keeps its register.
    assert count(tower, "cls_token", "register_tokens") == 2 * size.width


def test_the_new_small_size_is_the_first_generations_tower_on_the_larger_grid() -> None:
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
