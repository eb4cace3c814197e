"""Scenes of named drawings with their masks: four side by side, or crowds of them.

Scene i is a pure function of (seed, i), so what is computed from them can be resumed.

Legend: M sprites, S side of a scene in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.backgrounds import Photo, draw_background
from training.data.concepts import all_concepts
from training.data.scenes import SceneConfig, place_sprite
from training.data.sprites import SpriteBank
from training.photographs.drawings import NamedDrawings

PER_SCENE = 4
# Sides that scenes are composed at before they are scaled to the encoder's size: drawings are
# shown as blurred as in small images and as sharp as in large ones.
SIDES = (112, 112, 160, 224, 320)
# Of a quarter of the scene. With overlapping drawings one pass gave mIoU 18 on development scenes,
# with these 27.
_QUARTER = SceneConfig(min_size=0.65, max_size=0.98, margin=0.46, is_augmented=True)
_STREAM = 17  # separates these random numbers from those of other scenes
_OPAQUE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSource:
    """Composes the scenes.

    Attributes:
        drawings: What is shown; each drawing once in every pass.
        photos: Background photographs.
        size: Side of a scene in pixels.
        seed: Of every choice.
    """

    drawings: NamedDrawings
    photos: Sequence[Photo]
    size: int
    seed: int = 0

    @property
    def scenes_per_pass(self) -> int:
        """Scenes that show every drawing once."""
        return -(-len(self.drawings.name_M) // PER_SCENE)

    def scene(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Scene number `index`.

        Returns:
            uint8 [S, S, 3], and the mask int32 [S, S]: 0 for background, k for `names[k - 1]`.
        """
        number, place = divmod(index, self.scenes_per_pass)
        order = np.random.default_rng((self.seed, _STREAM, number)).permutation(
            len(self.drawings.name_M)
        )
        rng = np.random.default_rng((self.seed, _STREAM, number, place))
        side = int(rng.choice(SIDES))
        canvas, _ = draw_background(rng, side, self.photos)
        mask_SS = np.zeros((side, side), np.int32)
        half = side // 2
        quarter = replace(_QUARTER, size=half)
        rows = order[place * PER_SCENE : (place + 1) * PER_SCENE]
        for corner, row in enumerate(rows):
            top, left = divmod(corner, 2)
            part = (slice(top * half, (top + 1) * half), slice(left * half, (left + 1) * half))
            size = float(rng.uniform(quarter.min_size, quarter.max_size))
            colour, alpha, _ = place_sprite(rng, self.drawings.rgba_MSS4[row], quarter, size)
            canvas[part] = canvas[part] * (1 - alpha[..., None]) + colour
            mask_SS[part][alpha > _OPAQUE] = self.drawings.name_M[row] + 1
        return _scaled(canvas, mask_SS, self.size)


FURTHER_STYLES = (
    "fxemoji",
    "streamline-emojis",
    "streamline-ultimate-color",
    "flat-color-icons",
    "clipart",
)
_COUNTS = (2, 3, 3, 4)
_MIN_SIZE, _MAX_SIZE = 0.28, 0.66
# Separate these random numbers from those of other scenes.
_ORDER_STREAM, _STREAM = 7, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CrowdSource:
    """Composes the scenes; a part shows every drawing about once.

    Attributes:
        rgba_MSS4: uint8, straight alpha.
        label_M: What each sprite shows.
        photos: Background photographs.
        size: Side of a scene in pixels.
        scenes_per_part: Scenes of a part.
    """

    rgba_MSS4: NDArray[np.uint8]
    label_M: NDArray[np.int64]
    photos: Sequence[Photo]
    size: int
    scenes_per_part: int

    def part(self, number: int) -> list[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
        """Scenes of a part: uint8 [S, S, 3], and the mask int32 [S, S], 0 or 1 + a label."""
        order_M = np.random.default_rng((_ORDER_STREAM, number)).permutation(len(self.label_M))
        scenes, shown = [], 0
        for place in range(self.scenes_per_part):
            rng = np.random.default_rng((_STREAM, number, place))
            side = int(rng.choice(SIDES))
            canvas, _ = draw_background(rng, side, self.photos)
            mask_SS = np.zeros((side, side), np.int32)
            config = SceneConfig(size=side, is_augmented=True)
            for _ in range(int(rng.choice(_COUNTS))):
                row = order_M[shown % len(order_M)]
                shown += 1
                size = float(rng.uniform(_MIN_SIZE, _MAX_SIZE))
                colour, alpha, _ = place_sprite(rng, self.rgba_MSS4[row], config, size)
                canvas = canvas * (1 - alpha[..., None]) + colour
                mask_SS[alpha > _OPAQUE] = self.label_M[row] + 1
            scenes.append(_scaled(canvas, mask_SS, self.size))
        return scenes


def _scaled(
    canvas_SS3: NDArray[np.float32], mask_SS: NDArray[np.int32], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    pixels = np.clip(canvas_SS3 + 0.5, 0, 255).astype(np.uint8)
    whole = (size, size)
    return (
        np.asarray(cv2.resize(pixels, whole, interpolation=cv2.INTER_LINEAR), np.uint8),
        np.asarray(cv2.resize(mask_SS, whole, interpolation=cv2.INTER_NEAREST), np.int32),
    )


def crowd_sprites(
    drawings: NamedDrawings, bank: SpriteBank, label_of: Mapping[str, int], first_concept: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All drawings that crowds show, and their labels.

    Args:
        drawings: Labelled by their own names.
        bank: Its further styles are labelled by concepts that `drawings` shows.
        label_of: Labels of the drawings' names in lower case.
        first_concept: Label of the first of `all_concepts()`; the others follow.
    """
    concepts = all_concepts()
    is_named = np.asarray(
        [not c.is_unseen and any(d.lower() in label_of for d in c.drawings) for c in concepts]
    )
    styles = [bank.styles.index(style) for style in FURTHER_STYLES]
    chosen_M = np.isin(bank.style_M, styles) & is_named[bank.concept_M]
    own_M = np.asarray([label_of[drawings.names[name].lower()] for name in drawings.name_M])
    return (
        np.concatenate([drawings.rgba_MSS4, bank.rgba_MSS4[chosen_M]]),
        np.concatenate([own_M, first_concept + bank.concept_M[chosen_M]]),
    )
