"""Heads learn what embeddings tell, and read them unchanged."""

import numpy as np
import torch

from training.dense.head import MAP_SCALE, NO_CLASS, Examples, fit_dense_head

WIDTH = 6


def drawn(count: int = 64) -> Examples:
    """Patches whose second number is what the map shows, beside noise of other scales."""
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(count, 4, 4, WIDTH)) * 10.0 ** np.arange(-2, 4) + 5
    shown = rng.uniform(-1, 1, (count, 4, 4))
    patches[..., 1] = shown * 0.05 - 3
    maps = (shown.repeat(MAP_SCALE, 1).repeat(MAP_SCALE, 2) > 0).astype(np.int16)
    maps[:, :3] = NO_CLASS
    cls = rng.normal(size=(count, WIDTH))
    return Examples(
        cls_PD=cls.astype("f2"), patches_PhwD=patches.astype("f2"), maps=maps, num_classes=3
    )


def test_convolutions_learn_what_patches_show_and_read_raw_embeddings() -> None:
    """Linear heads learn in the job's test."""
    examples = drawn()
    head = fit_dense_head(examples, "segmentation", "dpt", num_steps=200)
    assert not head.training
    cls_PD, patches_PhwD = (
        torch.from_numpy(values.astype(np.float32))
        for values in (examples.cls_PD, examples.patches_PhwD)
    )
    called = head(cls_PD[:, None], patches_PhwD[:, None]).argmax(1).numpy()
    middle = slice(MAP_SCALE // 2, None, MAP_SCALE)
    found, truth = (maps[:, middle, middle] for maps in (called, examples.maps))
    assert (found == truth)[truth >= 0].mean() > 0.9
    assert (called != 2).all()  # no example shows the third class
