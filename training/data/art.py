"""Reads drawings from the art packages: emoji, icons, clip art, furniture renders, photo stamps.

Knows package layouts and licences. This module alone decides which sets may be trained on.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from training.data.concepts import FURNITURE_NAMES, Concept

_RENDER_PIXELS = 192
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtSet:
    """One drawing style and where it comes from.

    Attributes:
        name: The style's name in captions of results, such as "noto".
        package: npm or Debian package that holds it.
        licence: SPDX identifier of the art.
        trainable: Whether a model that we ship may be trained on it.
    """

    name: str
    package: str
    licence: str
    trainable: bool


def _iconify(name: str, licence: str, *, trainable: bool) -> ArtSet:
    """A set of SVG icons from Iconify's npm packages."""
    return ArtSet(name=name, package=f"@iconify-json/{name}", licence=licence, trainable=trainable)


ART_SETS = (
    _iconify("noto", "Apache-2.0", trainable=True),
    _iconify("twemoji", "CC-BY-4.0", trainable=True),
    _iconify("noto-v1", "Apache-2.0", trainable=True),
    _iconify("emojione", "CC-BY-4.0", trainable=True),
    _iconify("fxemoji", "Apache-2.0", trainable=True),
    _iconify("streamline-emojis", "CC-BY-4.0", trainable=True),
    _iconify("streamline-ultimate-color", "CC-BY-4.0", trainable=True),
    _iconify("flat-color-icons", "MIT", trainable=True),
    ArtSet(name="clipart", package="openclipart-svg", licence="CC0-1.0", trainable=True),
    ArtSet(name="furniture", package="sweethome3d-furniture", licence="CC-BY-3.0", trainable=True),
    # The same shapes as the 3D set below, so training on it would give the test away.
    ArtSet(name="fluent-3d", package="@lobehub/fluent-emoji-3d", licence="MIT", trainable=False),
    # GPL-2+: never trained on, never shipped.
    ArtSet(
        name="stamps",
        package="tuxpaint-stamps-default",
        licence="GPL-2.0-or-later",
        trainable=False,
    ),
    _iconify("openmoji", "CC-BY-SA-4.0", trainable=False),
)


def _code_points(emoji: str) -> str:
    """Write an emoji as the sets' file names do, without the variation selector."""
    return "-".join(f"{ord(char):x}" for char in emoji if ord(char) != 0xFE0F)


def _load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _annotations(npm: Path) -> dict[str, dict[str, list[str]]]:
    """CLDR's short name ("tts") and keywords ("default") of each emoji that has a short name."""
    content = _load_json(npm / "cldr-annotations-full/annotations/en/annotations.json")
    table = content["annotations"]["annotations"]
    return {emoji: words for emoji, words in table.items() if "tts" in words}


def _emoji(npm: Path) -> Iterator[tuple[str, str, str]]:
    """CLDR's short name of each emoji, the emoji, and its group."""
    spoken = {
        key.replace("\ufe0f", ""): words["tts"][0] for key, words in _annotations(npm).items()
    }
    emojis = _load_json(npm / "unicode-emoji-json/data-by-emoji.json")
    for emoji, entry in emojis.items():
        name = spoken.get(emoji.replace("\ufe0f", ""), entry["name"])
        yield name, emoji, entry.get("group", "")


def emoji_by_name(npm: Path) -> dict[str, str]:
    """Map CLDR short names to code-point keys such as "1f436"."""
    return {name: _code_points(emoji) for name, emoji, _ in _emoji(npm)}


def emoji_groups(npm: Path) -> dict[str, str]:
    """Map CLDR short names to Unicode's groups, such as "Food & Drink"."""
    return {name: group for name, _, group in _emoji(npm)}


def keywords_by_name(npm: Path) -> dict[str, tuple[str, ...]]:
    """Map CLDR short names to their CLDR keywords."""
    return {
        words["tts"][0]: tuple(words.get("default", ())) for words in _annotations(npm).values()
    }


def _slugs(npm: Path, style: str, icons: dict[str, Any]) -> dict[str, str]:
    """Map code-point keys to icon names; sets without a table are matched through Noto's names."""
    folder = npm / "@iconify-json"
    chars = _load_json(folder / style / "chars.json")
    if not chars:
        known = icons["icons"].keys() | icons.get("aliases", {}).keys()
        for reference in ("noto", "twemoji"):
            for key, slug in _load_json(folder / reference / "chars.json").items():
                if slug in known:
                    chars.setdefault(key, slug)
    return {key.replace("-fe0f", ""): slug for key, slug in chars.items()}


def _icon_svg(icons: dict[str, Any], slug: str) -> str:
    if slug not in icons["icons"]:
        slug = icons["aliases"][slug]["parent"]
    icon = icons["icons"][slug]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f"{icon['body']}</svg>"
    )


def icons_of(npm: Path, style: str) -> Iterator[tuple[str, str]]:
    """Yield (slug, SVG) of every icon of a set, aliases left out."""
    icons = _load_json(npm / "@iconify-json" / style / "icons.json")
    for slug in icons["icons"]:
        yield slug, _icon_svg(icons, slug)


def render_svg(svg: str) -> Image.Image:
    """Render an SVG into a square RGBA image.

    Raises:
        ValueError: It cannot be drawn.
    """
    png = resvg_py.svg_to_bytes(svg_string=svg, width=_RENDER_PIXELS, height=_RENDER_PIXELS)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def emoji_drawings(
    npm: Path, style: str, concepts: tuple[Concept, ...]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield (concept name, RGBA drawing) for every drawing of one emoji set.

    A drawing that the set lacks is left out.
    """
    keys = emoji_by_name(npm)
    if style == "fluent-3d":
        yield from _fluent_drawings(npm, keys, concepts)
        return
    icons = _load_json(npm / "@iconify-json" / style / "icons.json")
    slugs = _slugs(npm, style, icons)
    for concept in concepts:
        for drawing in concept.drawings:
            slug = slugs.get(keys[drawing])
            if slug is not None:
                yield concept.name, render_svg(_icon_svg(icons, slug))


def icon_drawings(
    npm: Path, style: str, concepts: tuple[Concept, ...]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield (concept name, RGBA drawing) of an icon set whose icons are only known by their slugs.

    An icon counts where its slug, without a trailing number, is a concept's name or the CLDR name
    of one of its drawings.
    """
    names = {c.name.lower(): c.name for c in concepts if not c.is_unseen}
    for concept in concepts:
        if not concept.is_unseen:
            for drawing in concept.drawings:
                names.setdefault(clean_title(drawing), concept.name)
    icons = _load_json(npm / "@iconify-json" / style / "icons.json")
    for slug in [*icons["icons"], *icons.get("aliases", {})]:
        name = names.get(clean_title(slug))
        if name is not None:
            yield name, render_svg(_icon_svg(icons, slug))


def _fluent_drawings(
    npm: Path, keys: dict[str, str], concepts: tuple[Concept, ...]
) -> Iterator[tuple[str, Image.Image]]:
    assets = npm / "@lobehub/fluent-emoji-3d/assets"
    for concept in concepts:
        for drawing in concept.drawings:
            key = keys[drawing]
            for path in (assets / f"{key}.webp", assets / f"{key}-fe0f.webp"):
                if path.exists():
                    yield concept.name, Image.open(path).convert("RGBA")
                    break


def clean_title(text: str) -> str:
    """Lower-case words of a title or slug, without digits and punctuation."""
    return " ".join(re.sub(r"[^a-z ]+", " ", text.lower()).split())


def square_sprite(drawing: Image.Image, size: int) -> NDArray[np.uint8] | None:
    """Crop a drawing to what is visible and fit it into a square.

    Args:
        drawing: RGBA.
        size: Side of the square in pixels.

    Returns:
        uint8 [size, size, 4], straight alpha; None where the drawing is a few hairlines or fills
        the whole card (then its outline, the mask, says nothing).
    """
    alpha = np.asarray(drawing.getchannel("A"))
    if (alpha > 127).mean() > 0.97:
        return None
    rows, columns = np.flatnonzero(alpha.max(1) > 32), np.flatnonzero(alpha.max(0) > 32)
    if rows.size == 0:
        return None
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    cropped = drawing.crop(box)
    solid = np.asarray(cropped.getchannel("A")) > 127
    if solid.mean() < 0.08:
        return None
    side = max(cropped.size)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(cropped, ((side - cropped.width) // 2, (side - cropped.height) // 2))
    return np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS))


def sprites_of(
    drawings: Iterable[tuple[Key, Image.Image]], size: int
) -> tuple[list[Key], NDArray[np.uint8]]:
    """The keys of the usable drawings, and their sprites [M, size, size, 4].

    Raises:
        ValueError: There are none.
    """
    pairs = ((key, square_sprite(drawing, size)) for key, drawing in drawings)
    found = [(key, sprite) for key, sprite in pairs if sprite is not None]
    if not found:
        raise ValueError("no usable drawing was fetched")
    return [key for key, _ in found], np.stack([sprite for _, sprite in found])


_CLIP_ART_FOLDERS = (
    "animals", "buildings", "computer", "containers", "electronics", "food", "office",
    "plants", "recreation", "science", "tools", "transportation",
)  # fmt: skip
_MAX_PLAIN_TITLE_WORDS = 4
_MAX_SVG_CHARACTERS = 400_000  # a few traced photos take seconds each
_PIXELS_PER_UNIT = {"pt": 4 / 3, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
_KEYWORD = re.compile(r"<rdf:li>([^<]+)</rdf:li>")
_TITLE = re.compile(r"<dc:title>([^<]+)</dc:title>")


def _svg_files(folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield the text and the stem of every SVG file, once for each name."""
    paths = [path for folder in folders for path in sorted(folder.rglob("*.svg"))]
    for path in sorted({path.name: path for path in paths}.values()):
        yield path.read_text(encoding="utf-8", errors="replace"), path.stem


def clip_art_drawings(
    clip_art: Path, concepts: tuple[Concept, ...]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield (concept name, RGBA drawing) for clip art whose title ends in a concept's name.

    Titles are the artists' own, and some are wrong; long titles need a keyword as well.
    """
    names = {concept.name.lower(): concept.name for concept in concepts if not concept.is_unseen}
    for svg, _ in _svg_files([clip_art / folder for folder in _CLIP_ART_FOLDERS]):
        name = _named_concept(svg, names)
        if name is None:
            continue
        try:
            yield name, render_svg(_with_view_box(svg))
        except ValueError:  # resvg refuses some of the old files
            continue


def open_clip_art(clip_art: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (title, text, SVG) of every clip art, each once.

    Title and text are clean words; the text holds keywords and the file's name as well.
    """
    for svg, stem in _svg_files([clip_art]):
        if len(svg) <= _MAX_SVG_CHARACTERS:
            found = _TITLE.search(svg)
            title = clean_title(found.group(1)) if found else ""
            words = clean_title(" ".join((title, *_KEYWORD.findall(svg), stem)))
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


def open_furniture(furniture: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield (clean name, RGBA icon) of every 3D model of the catalogues."""
    for path in sorted(furniture.glob("*.sh3f")):
        with zipfile.ZipFile(path) as catalogue:
            text = catalogue.read("PluginFurnitureCatalog.properties").decode("latin-1")
            pairs = dict(re.findall(r"^((?:name|icon)#\d+)=(.*)$", text, re.MULTILINE))
            for key, name in pairs.items():
                icon = pairs.get(key.replace("name#", "icon#"))
                if key.startswith("name#") and icon:
                    data = catalogue.read(icon.strip().lstrip("/"))
                    yield clean_title(name), Image.open(io.BytesIO(data)).convert("RGBA")


def furniture_drawings(furniture: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield (concept name, RGBA icon) of each 3D model that a catalogue names plainly."""
    for title, icon in open_furniture(furniture):
        name = FURNITURE_NAMES.get(title.rpartition(" ")[2])
        if name is not None:
            yield name, icon


def stamp_drawings(
    stamps: Path, concepts: tuple[Concept, ...]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield (concept name, RGBA cut-out) of Tux Paint's stamps, read in place; for evaluation only.

    A stamp counts where the first line of its caption is nothing but an article and the name.
    """
    names = {concept.name.lower(): concept.name for concept in concepts}
    for path in sorted(stamps.rglob("*.png")):
        caption = path.with_suffix(".txt")
        if not caption.exists() or path.stem.endswith("_mirror"):
            continue
        lines = caption.read_text(encoding="utf-8", errors="replace").splitlines()
        words = clean_title(lines[0] if lines else "")
        name = names.get(re.sub(r"^(a|an|the|some) ", "", words))
        if name is not None:
            yield name, Image.open(path).convert("RGBA")
