"""Reads Open Clip Art: which of its thousands of files show just one known thing."""

import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from training.data.art import clean_title, render_svg
from training.data.concepts import Concept

_CLIP_ART_FOLDERS = (
    "animals", "buildings", "computer", "containers", "electronics", "food", "office",
    "plants", "recreation", "science", "tools", "transportation",
)  # fmt: skip
_MAX_PLAIN_TITLE_WORDS = 4
_MAX_SVG_CHARACTERS = 400_000  # a few traced photos take seconds each
_PIXELS_PER_UNIT = {"pt": 4 / 3, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
_KEYWORD = re.compile(r"<rdf:li>([^<]+)</rdf:li>")
_TITLE = re.compile(r"<dc:title>([^<]+)</dc:title>")


def clip_art_drawings(
    clip_art: Path, concepts: tuple[Concept, ...]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield (concept name, RGBA drawing) for clip art whose title ends in a concept's name.

    Titles are the artists' own, so some are wrong; only short titles are believed.
    """
    names = {concept.name.lower(): concept.name for concept in concepts if not concept.is_unseen}
    paths = [
        path for folder in _CLIP_ART_FOLDERS for path in sorted((clip_art / folder).rglob("*.svg"))
    ]
    for path in sorted({path.name: path for path in paths}.values()):
        svg = path.read_text(encoding="utf-8", errors="replace")
        name = _named_concept(svg, names)
        if name is None:
            continue
        try:
            yield name, render_svg(_with_view_box(svg))
        except ValueError:  # resvg refuses some of the old files
            continue


def open_clip_art(clip_art: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (title, all that a file says of itself, SVG) of every clip art, each once.

    Title and text are clean words; the text holds keywords and the file's name as well.
    """
    for path in sorted({path.name: path for path in sorted(clip_art.rglob("*.svg"))}.values()):
        svg = path.read_text(encoding="utf-8", errors="replace")
        if len(svg) <= _MAX_SVG_CHARACTERS:
            found = _TITLE.search(svg)
            title = clean_title(found.group(1)) if found else ""
            words = clean_title(" ".join((title, *_KEYWORD.findall(svg), path.stem)))
            yield title, words, _with_view_box(svg)


def _named_concept(svg: str, names: dict[str, str]) -> str | None:
    """Find the one concept that both the title and the keywords of a clip-art file name."""
    found = _TITLE.search(svg)
    words = clean_title(found.group(1)).split() if found else []
    keywords = {clean_title(word) for word in _KEYWORD.findall(svg)}
    if not words or {"icon", "theme", "sign"} & (keywords | set(words)):
        return None
    title = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    named = {name for name in names if name in title}
    if len(named) > 1:
        named = {name for name in named if name in keywords}
    if len(named) != 1:
        return None
    name = named.pop()
    is_plain_title = len(words) <= _MAX_PLAIN_TITLE_WORDS and words[-1] == name.split()[-1]
    return names[name] if name in keywords or is_plain_title else None


def _with_view_box(svg: str) -> str:
    """Give an old Inkscape file the viewBox it lacks, so that it is scaled and not cropped."""
    start = max(svg.find("<svg"), 0)
    end = svg.find(">", start)
    head, body = svg[start:end], svg[end:]
    sizes = [
        re.search(rf'\b{side}="([0-9.]+)(pt|mm|cm|in|px)?"', head) for side in ("width", "height")
    ]
    if "viewBox" not in head and all(sizes):
        pixels = [
            float(size.group(1)) * _PIXELS_PER_UNIT.get(size.group(2), 1.0)
            for size in sizes
            if size
        ]
        head = head.replace("<svg", f'<svg viewBox="0 0 {pixels[0]} {pixels[1]}"', 1)
    head = re.sub(r'\b(width|height)="[^"]*"', "", head)
    return head + body
