"""Sizes are read off shapes alone, and the released ones come out as they are known."""

from pathlib import Path

import pytest
import torch
from transformers import Tipsv2Model

from model.checkpoints.architecture import (
    check_name,
    pair_config,
    tower_configs,
    variant_in_file_name,
    variant_name,
)
from model.checkpoints.array_archive import ArrayArchive
from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.official import text_sources, vision_sources
from model.checkpoints.weight_map import Source
from model.variants import VARIANTS

NUM_FUSED = {".attn.qkv.": 3, ".attn.in_proj_": 3, ".mlp.w12.": 2}


class Headers(ArrayArchive):
    """An archive of which nothing but the headers is there."""

    def __init__(self, name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        self.path = Path(name)
        self.shapes = shapes


def headers(name: str, sources: dict[str, Source], module: torch.nn.Module) -> Headers:
    """What the official file of a tower has for shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, tensor in module.state_dict().items():
        theirs, shape = sources[ours].name, tuple(tensor.shape)
        for infix, factor in NUM_FUSED.items():
            if infix in theirs:
                shape = (factor * shape[0], *shape[1:])
        shapes[theirs] = shape
    return Headers(name, shapes)


def pair_of(name: str) -> tuple[Headers, Headers]:
    with torch.device("meta"):
        model = Tipsv2Model(VARIANTS[name].build())
    vision, text = model.vision_model, model.text_model
    return (
        headers("x_vision.npz", vision_sources(vision.state_dict(), ""), vision),
        headers("x_text.npz", text_sources(text.state_dict(), ""), text),
    )


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_known_size_is_recognised(name: str) -> None:
    config = pair_config(*pair_of(name), temperature=0.07)
    assert variant_name(config) == name
    expected = tower_configs(VARIANTS[name].build())
    for ours, theirs in zip(tower_configs(config), expected, strict=True):
        assert ours.to_dict() == theirs.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(VARIANTS))
def test_the_model_of_a_known_size_has_the_files_shapes(name: str) -> None:
    """SwiGLU's hidden width and SO400m's odd MLP survive transformers' rounding."""
    vision, text = pair_of(name)
    with torch.device("meta"):
        model = Tipsv2Model(pair_config(vision, text, temperature=0.07))
        expected = Tipsv2Model(VARIANTS[name].build())
    shapes = {key: tensor.shape for key, tensor in expected.state_dict().items()}
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == shapes


def test_towers_of_two_released_sizes_do_not_belong_together() -> None:
    with pytest.raises(CheckpointError, match=r"tower of g14 .* tower of b14"):
        pair_config(pair_of("g14")[0], pair_of("b14")[1], temperature=0.07)


def change(shapes: dict[str, tuple[int, ...]], **changes: tuple[int, ...]) -> Headers:
    return Headers("x_vision.npz", shapes | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_embed": (1, 1000, 768)}, "999 places .* make no square"),
        ({"pos_embed": (1, 1, 768)}, "0 places"),
        ({"register_tokens": (1, 4, 768)}, "4 register tokens"),
        ({"cls_token": (768,)}, r"shape \(768,\), not with 3 axes"),
        ({"cls_token": (1, 1, 0)}, "not with 3 axes"),
        ({"blocks.0.mlp.w3.weight": (768, 1001)}, "cannot build"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, tuple[int, ...]], message: str) -> None:
    vision, text = pair_of("b14")
    with pytest.raises(CheckpointError, match=message):
        pair_config(change(vision.shapes, **changes), text, temperature=0.07)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("tips_v2_oss_b14_vision.npz", "b14"),
        ("tips_v2_oss_so14_text.npz", "so400m14"),
        ("tips_v2_so400m14_depth_dpt.zip", "so400m14"),
        ("tips_oss_g14_highres_vision.npz", "g14"),
        ("tipsv2-l14", "l14"),
        ("my_student_vision.npz", None),
        ("b142_vision.npz", None),
    ],
)
def test_a_file_name_tells_the_variant(name: str, variant: str | None) -> None:
    assert variant_in_file_name(name) == variant


def test_a_name_that_tells_nothing_is_fine() -> None:
    check_name(["student_vision.npz", "tips_v2_oss_b14_text.npz"], "b14")
