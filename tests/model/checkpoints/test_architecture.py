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


def pair_of(name: str) -> tuple[ArrayArchive, ArrayArchive]:
    """The official files of a size, without contents."""
    with torch.device("meta"):
        model = Tipsv2Model(VARIANTS[name].build())
    return (
        ArrayArchive(Path("x_vision.npz"), vision_tensors(model)),
        ArrayArchive(Path("x_text.npz"), text_tensors(model)),
    )


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
