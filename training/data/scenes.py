"""Composes scenes: drawings on a background, with every object's exact mask and three captions.

A scene is a pure function of (seed, split, index), so a data set needs no storage and a training
run resumes at the next scene.

Legend: S side of the scene in pixels, O objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import MinLen
from numpy.typing import NDArray
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass as checked_dataclass

from training.data.augment import recolour, warp_sprite
from training.data.backgrounds import Photo, draw_background
from training.data.captions import Captions, PlacedObject, write_captions
from training.data.concepts import all_concepts
from training.data.sprites import SpriteBank
from training.settings import STRICT

# Workers are forked processes, in which OpenCV's own threads would deadlock.
cv2.setNumThreads(0)

Split = Literal["train", "val", "test"]
_SPLIT_NUMBER: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
_MIN_VISIBLE_SHARE = 0.3
_MIN_VISIBLE_PIXELS = 0.004  # share of the scene
_OPAQUE = 0.5
_MAX_TRIES = 1000


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SceneConfig:
    """Settings of scenes.

    Attributes:
        size: Side in pixels.
        count_weights: Relative frequency of scenes with 1, 2, 3, ... objects.
        min_size: Smallest longer side of an object, share of the scene's side.
        max_size: Largest longer side, likewise.
        margin: Distance of objects' centres from the edges, share of the scene's side.
        common_share: Share of objects drawn from the everyday words.
        twin_share: Share of further objects of the first object's concept ("two dogs").
        is_augmented: Whether colours, light and shapes of drawings are changed.
        is_textured: Whether plain backgrounds are left out.
    """

    size: int = 112
    count_weights: Annotated[tuple[NonNegativeFloat, ...], MinLen(1)] = (0.3, 0.4, 0.3)
    min_size: float = 0.28
    max_size: float = 0.62
    margin: float = 0.2
    common_share: float = 0.5
    twin_share: float = 0.08
    is_augmented: bool = False
    is_textured: bool = False

    def __post_init__(self) -> None:
        """Check the sizes."""
        if not 0 < self.min_size <= self.max_size <= 1:
            raise ValueError("Object sizes must satisfy 0 < min_size <= max_size <= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One composed scene.

    Attributes:
        pixels_SS3: uint8 RGB.
        mask_SS: int32, 0 background, k the concept `all_concepts()[k - 1]`. For evaluation, and for
            the distillation of a space, whose teacher learnt from masks. No other loss uses it.
        captions: Three granularities.
        drawings: Rows of the sprite bank that it was composed from.
    """

    pixels_SS3: NDArray[np.uint8]
    mask_SS: NDArray[np.int32]
    captions: Captions
    drawings: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSource:
    """Drawings, styles, names and background photos of the scenes of one split.

    Each split and seed has its own random stream; `keywords` are CLDR's, by concept name.
    """

    bank: SpriteBank
    styles: tuple[str, ...]
    photos: Sequence[Photo]
    keywords: Mapping[str, Sequence[str]]
    names: frozenset[str]
    split: Split
    seed: int = 0
    _pools: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict, init=False)
    _ids: dict[str, NDArray[np.int64]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Index the drawings of the allowed concepts, everyday words separately."""
        concepts = all_concepts()
        drawings = self.bank.by_concept(self.styles)
        allowed = [i for i in drawings if concepts[i].name in self.names]
        if not allowed:
            raise ValueError(f"No drawing of the chosen names in the styles {self.styles}")
        common = [i for i in allowed if concepts[i].is_common]
        rare = [i for i in allowed if not concepts[i].is_common]
        for pool, ids in (("common", common or rare), ("rare", rare or common)):
            self._ids[pool] = np.asarray(ids)
            self._pools[pool] = [drawings[i] for i in ids]

    def draw(self, rng: np.random.Generator, common_share: float) -> tuple[int, int]:
        """Choose a concept and one of its drawings; returns (concept index, row of the bank)."""
        pool = "common" if rng.random() < common_share else "rare"
        number = int(rng.integers(len(self._ids[pool])))
        return int(self._ids[pool][number]), self._drawing(rng, self._pools[pool][number])

    def num_concepts(self, common_share: float) -> int:
        """Count the concepts that `draw` can choose from."""
        shares = {"common": common_share, "rare": 1 - common_share}
        pools = [self._ids[pool].tolist() for pool, share in shares.items() if share > 0]
        return len(set().union(*pools))

    def redraw(self, rng: np.random.Generator, concept: int) -> int:
        """Choose a drawing of a given concept; returns its row of the bank."""
        pool = "common" if concept in self._ids["common"] else "rare"
        number = int(np.flatnonzero(self._ids[pool] == concept)[0])
        return self._drawing(rng, self._pools[pool][number])

    def _drawing(self, rng: np.random.Generator, drawings: NDArray[np.int64]) -> int:
        # Styles have equal weight: a clip-art set with ten dogs must not dominate the emoji.
        styles = self.bank.style_M[drawings]
        style = rng.choice(np.unique(styles))
        return int(rng.choice(drawings[styles == style]))


def place_sprite(
    rng: np.random.Generator, rgba: NDArray[np.uint8], config: SceneConfig, size: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[float, float]]:
    """Scale, turn and move a sprite.

    Args:
        rng: Source of every choice.
        rgba: uint8 [., ., 4], straight alpha.
        config: Size of the scene and how drawings are changed.
        size: Longer side of the sprite, share of the scene's side.

    Returns:
        RGB [S, S, 3] in 0..255 times alpha, alpha [S, S] in 0..1, and the centre (x, y) as shares.
    """
    side = config.size
    pixels = max(8, round(size * side))
    warped_HW4 = warp_sprite(rng, rgba, is_augmented=config.is_augmented)
    small = cv2.resize(warped_HW4, (pixels, pixels), interpolation=cv2.INTER_AREA)
    alpha = small[..., 3].astype(np.float32) / 255.0
    colour = small[..., :3].astype(np.float32)
    if config.is_augmented:
        colour = recolour(rng, colour, alpha)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    turn, stretch = np.deg2rad(rng.uniform(-20, 20)), np.exp(rng.normal(0, 0.08))
    x, y = rng.uniform(config.margin, 1 - config.margin, 2)
    cos, sin = np.cos(turn), np.sin(turn)
    linear = np.array([[cos * flip * stretch, -sin], [sin * flip * stretch, cos]])
    shift = np.array([x, y]) * side - linear @ np.array([pixels / 2, pixels / 2])
    matrix = np.column_stack([linear, shift]).astype(np.float32)
    premultiplied = np.dstack([colour * alpha[..., None], alpha])
    warped: NDArray[np.float32] = np.asarray(
        cv2.warpAffine(premultiplied, matrix, (side, side), flags=cv2.INTER_LINEAR), np.float32
    )
    return warped[..., :3], warped[..., 3], (float(x), float(y))


def compose_scene(source: SceneSource, index: int, config: SceneConfig) -> Scene:
    """Compose scene number `index`.

    A scene with fewer visible objects than drawn is composed again from the same random stream, so
    that every scene of a set has the stated number of objects.

    Raises:
        ValueError: Too few concepts, or objects that are too small to be visible.
    """
    rng = np.random.default_rng((source.seed, _SPLIT_NUMBER[source.split], index))
    weights = np.asarray(config.count_weights) / sum(config.count_weights)
    count = 1 + int(rng.choice(len(weights), p=weights))
    if config.twin_share == 0 and count > source.num_concepts(config.common_share):
        raise ValueError(f"too few names for {count} different objects; allow more names")
    for _ in range(_MAX_TRIES):
        scene, visible = _try_scene(rng, source, config, count)
        if visible == count:
            return scene
    raise ValueError(f"found no scene of {count} visible objects; allow larger objects")


def _choose_objects(
    rng: np.random.Generator, source: SceneSource, config: SceneConfig, count: int
) -> list[tuple[int, int]]:
    """Choose (concept index, row of the bank) of each object."""
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count:
        if chosen and rng.random() < config.twin_share:
            chosen.append((chosen[0][0], source.redraw(rng, chosen[0][0])))
            continue
        concept, drawing = source.draw(rng, config.common_share)
        if concept not in [other for other, _ in chosen]:
            chosen.append((concept, drawing))
    return chosen


def _try_scene(
    rng: np.random.Generator, source: SceneSource, config: SceneConfig, count: int
) -> tuple[Scene, int]:
    """Compose once; returns the scene and the number of its visible objects."""
    side, concepts = config.size, all_concepts()
    canvas, phrase = draw_background(rng, side, source.photos, is_textured=config.is_textured)
    owner = np.full((side, side), -1, np.int32)
    placed: list[tuple[int, float, tuple[float, float], int]] = []
    chosen = _choose_objects(rng, source, config, count)
    for concept, drawing in chosen:
        rgba = source.bank.rgba_MSS4[drawing]
        size = float(rng.uniform(config.min_size, config.max_size))
        colour, alpha, centre = place_sprite(rng, rgba, config, size)
        canvas = canvas * (1 - alpha[..., None]) + colour
        solid = alpha > _OPAQUE
        owner[solid] = len(placed)
        placed.append((concept, size, centre, int(solid.sum())))
    mask = np.zeros((side, side), np.int32)
    objects = []
    for number, (concept, size, (x, y), area) in enumerate(placed):
        visible = owner == number
        mask[visible] = concept + 1
        share = int(visible.sum()) / max(1, area)
        if share >= _MIN_VISIBLE_SHARE and visible.sum() >= _MIN_VISIBLE_PIXELS * side * side:
            name = concepts[concept].name
            objects.append(PlacedObject(name=name, size=size, x=x, y=y, visible=share))
    captions = write_captions(rng, objects, phrase, source.keywords) if objects else None
    scene = Scene(
        pixels_SS3=np.clip(canvas + 0.5, 0, 255).astype(np.uint8),
        mask_SS=mask,
        captions=captions or Captions(names=(), short="", keywords="", scene=""),
        drawings=tuple(drawing for _, drawing in chosen),
    )
    return scene, len(objects)
