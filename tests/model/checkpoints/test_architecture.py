"""Sizes are derived from shapes alone, and the released ones are recognised."""

from pathlib import Path

import pytest
import torch
from transformers import Tipsv2Model

from model.checkpoints.architecture import pair_config, tower_configs, variant_name
from model.checkpoints.array_archive import ArrayArchive
from model.checkpoints.checkpoint import CheckpointError
from model.variants import VARIANTS
from tests.model.checkpoints.official_layout import text_tensors, vision_tensors


class Headers(ArrayArchive):
    """An archive without contents."""

    def __init__(self, name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        self.path = Path(name)
        self.shapes = shapes


def pair_of(name: str) -> tuple[Headers, Headers]:
    """The shapes in the official files of a size."""
    with torch.device("meta"):
        model = Tipsv2Model(VARIANTS[name].build())
    vision, text = (
        {key: tuple(tensor.shape) for key, tensor in tensors(model).items()}
        for tensors in (vision_tensors, text_tensors)
    )
    return Headers("x_vision.npz", vision), Headers("x_text.npz", text)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_known_size_is_recognised(name: str) -> None:
    config = pair_config(*pair_of(name), temperature=0.07)
    assert variant_name(config) == name
    expected = tower_configs(VARIANTS[name].build())
    for ours, theirs in zip(tower_configs(config), expected, strict=True):
        assert ours.to_dict() == theirs.to_dict()


def test_towers_of_two_released_sizes_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"tower of l14 \(width 1024\) .* tower of b14"):
        pair_config(pair_of("l14")[0], pair_of("b14")[1], temperature=0.07)


def test_impossible_shapes_are_refused() -> None:
    vision, text = pair_of("b14")
    for name, shape, message in [
        ("pos_embed", (1, 1000, 768), "not a square number"),
        ("pos_embed", (1, 1, 768), "not a square number"),
        ("register_tokens", (1, 4, 768), "4 register tokens"),
        ("cls_token", (768,), r"shape \(768,\), not with 3 axes"),
        ("cls_token", (1, 1, 0), "not with 3 axes"),
        ("cls_token", (1, 1, 100), "do not fit together"),
        ("blocks.0.mlp.w3.weight", (768, 1001), "cannot build"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            pair_config(Headers("x", vision.shapes | {name: shape}), text, temperature=0.07)
    narrow = Headers("x", {"cls_token": (1, 1, 100)})
    words = Headers("y", {"token_embedding.weight": (3, 100)})
    with pytest.raises(CheckpointError, match="number of attention heads"):
        pair_config(narrow, words, temperature=0.07)
