"""Views of named drawings: four in one scene, side by side, strongly augmented, with their masks.

View scene i is a pure function of (seed, i), so cells can be computed in parts and resumed.

Legend: M sprites, S side of a scene in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.augment import STRONG_AUGMENT
from training.data.backgrounds import Photo, draw_background
from training.data.scenes import SceneConfig, place_sprite
from training.photographs.drawings import NamedDrawings

PER_SCENE = 4
# Sides that scenes are composed at before they are scaled to the encoder's size: drawings are
# shown as blurred as in small images and as sharp as in large ones.
SIDES = (112, 112, 160, 224, 320)
# Of a quarter of the scene. With overlapping drawings one pass gave mIoU 18 on development scenes,
# with these 27.
_QUARTER = SceneConfig(min_size=0.65, max_size=0.98, margin=0.46, augment=STRONG_AUGMENT)
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
        pixels = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
        whole = (self.size, self.size)
        return (
            np.asarray(cv2.resize(pixels, whole, interpolation=cv2.INTER_LINEAR), np.uint8),
            np.asarray(cv2.resize(mask_SS, whole, interpolation=cv2.INTER_NEAREST), np.int32),
        )
