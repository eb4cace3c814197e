"""Named drawings that the encoder's prototypes are fitted to.

Every emoji that shows a thing keeps its own CLDR name here ("dog face", "poodle"): prototypes need
no merged concepts, because texts reach them through a kernel over all names.

Legend: M sprites, S side in pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.array_record import ArrayRecord
from training.data.art import emoji_drawings, emoji_groups, open_furniture, square_sprite
from training.data.concepts import Concept, all_concepts
from training.data.folder import EMOJI_TRAIN_STYLES
from training.data.sprites import SPRITE_PIXELS, ArtFolders
from training.data.unnamed import unseen_words

_GROUPS = frozenset(
    ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
)
_FURTHER = ("skull", "ghost", "robot", "alien", "red heart", "pile of poo", "hole")
# Clock faces differ by the time that they show.
_LEFT_OUT = ("o\u2019clock", "-thirty")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedDrawings(ArrayRecord):
    """Drawings by name.

    Attributes:
        rgba_MSS4: uint8, straight alpha; alpha above 127 is the mask.
        name_M: Index into `names`.
        names: Each once.
    """

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
    rgba, found = [], []
    for name, drawing in _drawings(folders):
        sprite = square_sprite(drawing, SPRITE_PIXELS)
        if sprite is not None and name:
            rgba.append(sprite)
            found.append(name)
    names = tuple(dict.fromkeys(found))
    index = {name: number for number, name in enumerate(names)}
    return NamedDrawings(
        rgba_MSS4=np.stack(rgba), name_M=np.asarray([index[name] for name in found]), names=names
    )


def withheld(names: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each name mentions a concept of the hash split; the evaluation twin lacks those."""
    unseen = unseen_words()
    drawings = {d for c in all_concepts() if c.is_unseen for d in c.drawings}
    return np.asarray([bool(unseen.search(name.lower())) or name in drawings for name in names])
