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
