"""Drawings without a concept's name, each with the title from its set.

Every icon of the trainable sets, all clip art and furniture: several times as many images as the
named drawings, for the terms of the image backbone and of titles. Drawings whose words mention an
unseen concept are left out.

Legend: M sprites, S side of a sprite or an image in pixels.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.array_record import ArrayRecord
from training.data.art import (
    ART_SETS,
    clean_title,
    icons_of,
    open_clip_art,
    open_furniture,
    render_svg,
    sprites_of,
)
from training.data.backgrounds import Photo, draw_background
from training.data.concepts import all_concepts
from training.data.scenes import SceneConfig, place_sprite
from training.data.sprites import ArtFolders

UNNAMED_PIXELS = 64
ICON_SETS = tuple(a.name for a in ART_SETS if a.trainable and "iconify" in a.package)
# One drawing that fills a small image: cheap to encode.
CLOSE_UP = SceneConfig(size=56, count_weights=(1.0,), min_size=0.6, max_size=1.0, is_augmented=True)
# Skin tones and flags are hundreds of near copies.
_REPEATED = re.compile(r"\bskin\b|\bflag\b|^regional ")
_STREAM = 11  # separates these random numbers from those of the scenes


@dataclass(frozen=True, slots=True, kw_only=True)
class UnnamedBank(ArrayRecord):
    """The sprites, uint8 [M, S, S, 4] with straight alpha, and their titles, some empty."""

    is_compressed = True

    rgba_MSS4: NDArray[np.uint8]
    titles: tuple[str, ...]


def unseen_words() -> re.Pattern[str]:
    """Matches any name, in singular or plural, of a concept that training may not see."""
    unseen = [concept for concept in all_concepts() if concept.is_unseen]
    words = {clean_title(w) for concept in unseen for w in (concept.name, *concept.drawings)}
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(f"{re.escape(word)}s?" for word in longest_first) + r")\b")


def _icons(npm: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (title, title, SVG) of every icon of the sets."""
    for style in ICON_SETS:
        for slug, svg in icons_of(npm, style):
            title = clean_title(slug)
            if not _REPEATED.search(title):
                yield title, title, svg


def _drawings(folders: ArtFolders) -> Iterator[tuple[str, Image.Image]]:
    unseen = unseen_words()
    for title, words, svg in (*_icons(folders.npm), *open_clip_art(folders.clip_art)):
        if not unseen.search(words):
            try:
                yield title, render_svg(svg)
            except ValueError:  # resvg refuses some of the old files
                continue
    for title, icon in open_furniture(folders.furniture):
        if not unseen.search(title):
            yield title, icon


def build_unnamed(folders: ArtFolders) -> UnnamedBank:
    """Render them all (about 90 s on one core).

    Raises:
        ValueError: There is none.
    """
    titles, rgba_MSS4 = sprites_of(_drawings(folders), UNNAMED_PIXELS)
    return UnnamedBank(rgba_MSS4=rgba_MSS4, titles=tuple(titles))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnnamedSource:
    """Close-ups of the drawings: image i is a pure function of (seed, i)."""

    bank: UnnamedBank
    photos: Sequence[Photo]
    seed: int = 0

    def image(self, index: int) -> tuple[NDArray[np.uint8], str]:
        """Compose image number `index`: uint8 [S, S, 3], and its drawing's title."""
        rng = np.random.default_rng((self.seed, _STREAM, index))
        canvas, _ = draw_background(rng, CLOSE_UP.size, self.photos)
        row = int(rng.integers(len(self.bank.titles)))
        size = float(rng.uniform(CLOSE_UP.min_size, CLOSE_UP.max_size))
        colour, alpha, _ = place_sprite(rng, self.bank.rgba_MSS4[row], CLOSE_UP, size)
        pixels = canvas * (1 - alpha[..., None]) + colour
        return np.clip(pixels + 0.5, 0, 255).astype(np.uint8), self.bank.titles[row]
