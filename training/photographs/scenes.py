"""Named drawings, and scenes of them with their masks: four side by side, or crowds of them.

Every emoji that shows a thing keeps its own CLDR name here ("dog face", "poodle"): prototypes need
no merged concepts, because texts reach them through a kernel over all names. Scene i is a pure
function of i, so what is computed from them can be resumed.

Legend: M sprites, S side of a scene in pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.array_record import ArrayRecord
from training.data.art import emoji_drawings, emoji_groups, open_furniture, sprites_of
from training.data.backgrounds import Photo, draw_background
from training.data.concepts import Concept, all_concepts
from training.data.folder import EMOJI_TRAIN_STYLES
from training.data.scenes import SceneConfig, place_sprite
from training.data.sprites import SPRITE_PIXELS, ArtFolders, SpriteBank
from training.data.unnamed import unseen_words

_GROUPS = frozenset(
    ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
)
_FURTHER = ("skull", "ghost", "robot", "alien", "red heart", "pile of poo", "hole")
# Clock faces differ by the time that they show.
_LEFT_OUT = ("o\u2019clock", "-thirty")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedDrawings(ArrayRecord):
    """Drawings, uint8 with straight alpha above 127 where the mask is, and the name of each."""

    is_compressed = True

    rgba_MSS4: NDArray[np.uint8]
    name_M: NDArray[np.int64]
    names: tuple[str, ...]


def _emojis(npm: Path) -> tuple[Concept, ...]:
    """One concept for each emoji that shows a thing."""
    names = [
        name
        for name, group in emoji_groups(npm).items()
        if (group in _GROUPS or name in _FURTHER) and not any(word in name for word in _LEFT_OUT)
    ]
    return tuple(
        Concept(name=name, drawings=(name,), is_common=False, is_unseen=False) for name in names
    )


def _drawings(folders: ArtFolders) -> Iterator[tuple[str, Image.Image]]:
    for style in EMOJI_TRAIN_STYLES:
        yield from emoji_drawings(folders.npm, style, _emojis(folders.npm))
    yield from open_furniture(folders.furniture)


def build_drawings(folders: ArtFolders) -> NamedDrawings:
    """Render every named drawing of the styles that may be trained on (20 s)."""
    named = ((name, drawing) for name, drawing in _drawings(folders) if name)
    found, rgba_MSS4 = sprites_of(named, SPRITE_PIXELS)
    names = tuple(dict.fromkeys(found))
    index = {name: number for number, name in enumerate(names)}
    return NamedDrawings(
        rgba_MSS4=rgba_MSS4, name_M=np.asarray([index[name] for name in found]), names=names
    )


def withheld(names: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each name mentions a concept of the hash split; the evaluation twin lacks those."""
    unseen = unseen_words()
    drawings = {d for c in all_concepts() if c.is_unseen for d in c.drawings}
    return np.asarray([bool(unseen.search(name.lower())) or name in drawings for name in names])


# Pixels uint8 [S, S, 3], and a mask int32 [S, S]: 0, or 1 + what is shown.
Scene = tuple[NDArray[np.uint8], NDArray[np.int32]]
PER_SCENE = 4
# Sides that scenes are composed at before they are scaled to the encoder's size: drawings are
# shown as blurred as in small images and as sharp as in large ones.
SIDES = (112, 112, 160, 224, 320)
# Of a quarter of the scene. With overlapping drawings one pass gave mIoU 18 on development scenes,
# with these 27.
_QUARTER = SceneConfig(min_size=0.65, max_size=0.98, margin=0.46, is_augmented=True)
_CROWD = SceneConfig(min_size=0.28, max_size=0.66, is_augmented=True)
_CROWD_COUNTS = (2, 3, 3, 4)
FURTHER_STYLES = (
    "fxemoji",
    "streamline-emojis",
    "streamline-ultimate-color",
    "flat-color-icons",
    "clipart",
)
# Separate these random numbers from those of other scenes.
_VIEWS, _CROWD_ORDER, _CROWDS = 17, 7, 8
_OPAQUE = 0.5


class _Canvas:
    """A scene in the making, of a random side."""

    def __init__(self, rng: np.random.Generator, photos: Sequence[Photo]) -> None:
        self.rng, self.side = rng, int(rng.choice(SIDES))
        self.pixels, _ = draw_background(rng, self.side, photos)
        self.mask = np.zeros((self.side, self.side), np.int32)

    def draw(
        self,
        rgba: NDArray[np.uint8],
        shown: int,
        config: SceneConfig,
        part: tuple[slice, slice] = np.s_[:, :],
    ) -> None:
        """Draw a sprite of a random size in a part of the scene, above what is there."""
        size = float(self.rng.uniform(config.min_size, config.max_size))
        colour, alpha, _ = place_sprite(self.rng, rgba, config, size)
        self.pixels[part] = self.pixels[part] * (1 - alpha[..., None]) + colour
        self.mask[part][alpha > _OPAQUE] = shown + 1

    def scaled(self, side: int) -> Scene:
        """The scene at the encoder's size."""
        pixels, whole = np.clip(self.pixels + 0.5, 0, 255).astype(np.uint8), (side, side)
        return (
            np.asarray(cv2.resize(pixels, whole, interpolation=cv2.INTER_LINEAR), np.uint8),
            np.asarray(cv2.resize(self.mask, whole, interpolation=cv2.INTER_NEAREST), np.int32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSource:
    """Composes scenes of four drawings side by side; a pass shows each drawing once."""

    drawings: NamedDrawings
    photos: Sequence[Photo]
    size: int

    @property
    def scenes_per_pass(self) -> int:
        """Scenes that show every drawing once."""
        return -(-len(self.drawings.name_M) // PER_SCENE)

    def scene(self, index: int) -> Scene:
        """Scene number `index`; k in its mask stands for `names[k - 1]`."""
        number, place = divmod(index, self.scenes_per_pass)
        rgba_MSS4, name_M = self.drawings.rgba_MSS4, self.drawings.name_M
        order = np.random.default_rng((0, _VIEWS, number)).permutation(len(name_M))
        rng = np.random.default_rng((0, _VIEWS, number, place))
        canvas = _Canvas(rng, self.photos)
        half = canvas.side // 2
        quarter = replace(_QUARTER, size=half)
        for corner, row in enumerate(order[place * PER_SCENE : (place + 1) * PER_SCENE]):
            top, left = (half * step for step in divmod(corner, 2))
            part = np.s_[top : top + half, left : left + half]
            canvas.draw(rgba_MSS4[row], int(name_M[row]), quarter, part)
        return canvas.scaled(self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrowdSource:
    """Composes scenes of overlapping drawings; a part shows every drawing about once."""

    rgba_MSS4: NDArray[np.uint8]
    label_M: NDArray[np.int64]
    photos: Sequence[Photo]
    size: int
    scenes_per_part: int

    @classmethod
    def of(
        cls,
        views: ViewSource,
        bank: SpriteBank,
        label_of: Mapping[str, int],
        *,
        first_concept: int,
        scenes_per_part: int,
    ) -> Self:
        """Crowds of the drawings of views, and of further ones.

        Args:
            views: Its drawings are labelled by their own names.
            bank: Its further styles are labelled by concepts that the drawings show.
            label_of: Labels of the drawings' names in lower case.
            first_concept: Label of the first of `all_concepts()`; the others follow.
            scenes_per_part: Scenes of a part.
        """
        drawings, concepts = views.drawings, all_concepts()
        is_named = np.asarray(
            [not c.is_unseen and any(d.lower() in label_of for d in c.drawings) for c in concepts]
        )
        styles = [bank.styles.index(style) for style in FURTHER_STYLES]
        chosen_M = np.isin(bank.style_M, styles) & is_named[bank.concept_M]
        own_M = np.asarray([label_of[drawings.names[name].lower()] for name in drawings.name_M])
        return cls(
            rgba_MSS4=np.concatenate([drawings.rgba_MSS4, bank.rgba_MSS4[chosen_M]]),
            label_M=np.concatenate([own_M, first_concept + bank.concept_M[chosen_M]]),
            photos=views.photos,
            size=views.size,
            scenes_per_part=scenes_per_part,
        )

    def part(self, number: int) -> list[Scene]:
        """Scenes of a part; the mask has 1 + a label."""
        order_M = np.random.default_rng((_CROWD_ORDER, number)).permutation(len(self.label_M))
        scenes, shown = [], 0
        for place in range(self.scenes_per_part):
            rng = np.random.default_rng((_CROWDS, number, place))
            canvas = _Canvas(rng, self.photos)
            config = replace(_CROWD, size=canvas.side)
            for _ in range(int(rng.choice(_CROWD_COUNTS))):
                row = order_M[shown % len(order_M)]
                shown += 1
                canvas.draw(self.rgba_MSS4[row], int(self.label_M[row]), config)
            scenes.append(canvas.scaled(self.size))
        return scenes
