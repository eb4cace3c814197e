"""Heads have the released heads' outputs, learn what embeddings tell, and read them unchanged."""

from typing import Any

import numpy as np
import pytest
import torch

from model.graphs import DenseTask
from training.dense.head import (
    MAP_SCALE,
    NO_CLASS,
    EmbeddingHead,
    Examples,
    HeadKind,
    fit_dense_head,
)

WIDTH = 6


def drawn(task: DenseTask, count: int = 64) -> Examples:
    """Patches whose second number is what the map shows, beside noise of other scales."""
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(count, 4, 4, WIDTH)) * 10.0 ** np.arange(-2, 4) + 5
    shown = rng.uniform(-1, 1, (count, 4, 4))
    patches[..., 1] = shown * 0.05 - 3
    enlarged = shown.repeat(MAP_SCALE, 1).repeat(MAP_SCALE, 2)
    if task == "segmentation":
        maps: Any = (enlarged > 0).astype(np.int16)
        maps[:, :3] = NO_CLASS
    elif task == "depth":
        maps = np.exp(enlarged).astype(np.float32)
    else:
        maps = np.stack((np.sin(enlarged), enlarged * 0, np.cos(enlarged)), 1).astype(np.float16)
    cls = rng.normal(size=(count, WIDTH))
    return Examples(
        cls_PD=cls.astype("f2"), patches_PhwD=patches.astype("f2"), maps=maps, num_classes=3
    )


def read(head: EmbeddingHead, cls_PD: torch.Tensor, patches_PhwD: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(head(cls_PD[:, None], patches_PhwD[:, None]))


def raw(examples: Examples) -> list[torch.Tensor]:
    both = (examples.cls_PD, examples.patches_PhwD)
    return [torch.from_numpy(values.astype(np.float32)) for values in both]


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("depth", "linear"),
        ("normals", "linear"),
        ("segmentation", "linear"),
        ("segmentation", "dpt"),
    ],
)
def test_a_head_learns_what_patches_show(task: DenseTask, kind: HeadKind) -> None:
    examples = drawn(task)
    head = fit_dense_head(examples, task, kind, num_steps=200 if task == "segmentation" else 600)
    assert not head.training
    maps = read(head, *raw(examples))
    middle = slice(MAP_SCALE // 2, None, MAP_SCALE)
    found, truth = (values[..., middle, middle] for values in (maps, examples.maps))
    if task == "segmentation":
        assert (found.argmax(1) == truth)[truth >= 0].mean() > 0.9
        assert (maps.argmax(1) != 2).all()  # no example shows the third class
    else:
        assert np.abs(found - truth).mean() < 0.85 * np.abs(truth - truth.mean(0)).mean()
