"""Drawings, a bank and cells in miniature."""

import numpy as np
from numpy.typing import NDArray

from training.data.concepts import all_concepts
from training.data.sprites import SpriteBank
from training.photographs.heads import DrawingSpace
from training.photographs.scenes import FURTHER_STYLES, NamedDrawings, ViewSource
from training.photographs.trunk_features import Cells

NAMES = ("dog face", "trumpet", "violin", "anchor")


def squares(count: int) -> NDArray[np.uint8]:
    """Squares of different greys."""
    rgba = np.zeros((count, 96, 96, 4), np.uint8)
    rgba[:, 8:88, 8:88, 3] = 255
    rgba[..., :3] = np.linspace(0, 250, count, dtype=np.uint8)[:, None, None, None]
    return rgba


def drawings(count: int, *, num_names: int = len(NAMES)) -> NamedDrawings:
    names = NAMES if num_names == len(NAMES) else tuple(f"name {i}" for i in range(num_names))
    return NamedDrawings(rgba_MSS4=squares(count), name_M=np.arange(count) % num_names, names=names)


def view_source() -> ViewSource:
    """Views of six drawings with a name each."""
    return ViewSource(drawings=drawings(6, num_names=6), photos=(), size=128)


def bank() -> SpriteBank:
    """A dog and a car of a further style, and a dog of another one."""
    concepts = [concept.name for concept in all_concepts()]
    return SpriteBank(
        rgba_MSS4=squares(3),
        concept_M=np.asarray([concepts.index(name) for name in ("dog", "car", "dog")]),
        style_M=np.asarray([0, 0, 1]),
        styles=(*FURTHER_STYLES[:1], "noto", *FURTHER_STYLES[1:]),
    )


def cells(seed: int, num_names: int) -> Cells:
    """Twenty cells of each name, each around a mean of its own."""
    rng = np.random.default_rng(seed)
    name_n = np.repeat(np.arange(num_names), 20)
    cells_n2F = rng.normal(size=(num_names, 2, 1280))[name_n]
    cells_n2F += rng.normal(size=cells_n2F.shape)
    return Cells(cells_n2F=cells_n2F.astype(np.float16), name_n=name_n)


def random_space(num_names: int) -> DrawingSpace:
    """A space of four numbers."""
    rng = np.random.default_rng(0)
    fine, coarse, names = (
        rng.normal(size=size).astype(np.float32) for size in ((4, 1280), (4, 1280), (num_names, 4))
    )
    zeros = np.zeros(1280, np.float32)
    return DrawingSpace(
        fine_DF=fine, coarse_DF=coarse, fine_mean_F=zeros, coarse_mean_F=zeros, names_KD=names
    )
