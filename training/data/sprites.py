"""The sprite bank: every drawing of every trainable or held-out style as one small RGBA square.

Legend: M sprites, S side in pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.array_record import ArrayRecord
from training.data.art import (
    clip_art_drawings,
    emoji_drawings,
    furniture_drawings,
    icon_drawings,
    sprites_of,
    stamp_drawings,
)
from training.data.concepts import all_concepts

SPRITE_PIXELS = 96
# Sets without a table of code points; their icons are matched by name.
ICON_STYLES = ("fxemoji", "streamline-emojis", "streamline-ultimate-color", "flat-color-icons")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtFolders:
    """Folders of the fetched art: node_modules, Open Clip Art's SVG files, and catalogues.

    Only evaluation reads Tux Paint's stamps.
    """

    npm: Path
    clip_art: Path
    furniture: Path
    stamps: Path


def concept_names() -> tuple[str, ...]:
    """Of all concepts, in their order."""
    return tuple(concept.name for concept in all_concepts())


@dataclass(frozen=True, slots=True, kw_only=True)
class SpriteBank(ArrayRecord):
    """Drawings by concept.

    Attributes:
        rgba_MSS4: uint8, straight alpha; alpha above 127 is the exact mask.
        concept_M: Index into `all_concepts()`.
        style_M: Index into `styles`.
        styles: Names of the drawing styles.
        names: Of the concepts that it was built for.
    """

    is_compressed = True

    rgba_MSS4: NDArray[np.uint8]
    concept_M: NDArray[np.int64]
    style_M: NDArray[np.int64]
    styles: tuple[str, ...]
    names: tuple[str, ...] = field(default_factory=concept_names)

    def by_concept(self, styles: Sequence[str]) -> dict[int, NDArray[np.int64]]:
        """List the sprites of each concept in some styles.

        Raises:
            ValueError: A style is not in the bank.
        """
        unknown = set(styles) - set(self.styles)
        if unknown:
            raise ValueError(f"No style {sorted(unknown)} in the sprite bank; it has {self.styles}")
        chosen = np.isin(self.style_M, [self.styles.index(style) for style in styles])
        return {
            int(concept): np.flatnonzero(chosen & (self.concept_M == concept))
            for concept in np.unique(self.concept_M[chosen])
        }


def _drawings(folders: ArtFolders, style: str) -> Iterator[tuple[str, Image.Image]]:
    concepts = all_concepts()
    if style == "clipart":
        return clip_art_drawings(folders.clip_art, concepts)
    if style == "stamps":
        return stamp_drawings(folders.stamps, concepts)
    if style == "furniture":
        return furniture_drawings(folders.furniture)
    if style in ICON_STYLES:
        return icon_drawings(folders.npm, style, concepts)
    return emoji_drawings(folders.npm, style, concepts)


def build_bank(folders: ArtFolders, styles: Sequence[str]) -> SpriteBank:
    """Render every drawing of the given styles (about 20 s for all of them on one core).

    Raises:
        ValueError: There are no drawings.
    """
    index = {name: i for i, name in enumerate(concept_names())}
    drawings = (
        ((index[name], number), drawing)
        for number, style in enumerate(styles)
        for name, drawing in _drawings(folders, style)
    )
    found, rgba_MSS4 = sprites_of(drawings, SPRITE_PIXELS)
    concept_M, style_M = np.asarray(found).T
    return SpriteBank(
        rgba_MSS4=rgba_MSS4,
        concept_M=concept_M,
        style_M=style_M,
        styles=tuple(styles),
    )
