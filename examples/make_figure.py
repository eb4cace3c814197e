"""Draws a figure of the documentation with a running service: images with their masks.

`python examples/make_figure.py --output docs/images/first-light.jpg`; the ten photographs of the
model card, each beside its mask, with `--data DATA --output docs/images/photographs.jpg`, from the
data job's folder and Debian's package opencv-doc unpacked into its `debian/`.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import httpx
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
# Image, classes, level of background: the examples of the page.
EXAMPLES = (
    ("service/rest/web/butterfly.jpg", "butterfly", 0.75),
    ("examples/squirrel.jpg", "squirrel", 0.65),
    ("examples/scene.png", "burger,sunflower,open book", 0.7),
    ("service/rest/web/osprey.jpg", "bird", 0.7),
)
# Photographs whose licences allow to show them (NOTICE), not chosen by their masks.
PHOTOGRAPHS = (
    ("doc/opencv-doc/examples/data/fruits.jpg", "orange,lemon,kiwi"),
    ("doc/opencv-doc/examples/data/butterfly.jpg", "butterfly"),
    ("doc/opencv-doc/examples/data/chicky_512.png", "dog"),
    ("doc/opencv-doc/examples/data/squirrel_cls.jpg", "squirrel"),
    ("doc/opencv-doc/examples/data/home.jpg", "house,sky"),
    ("doc/opencv-doc/examples/data/building.jpg", "building,tree,sky,grass"),
    ("backgrounds/Wine_by_Jakkub_Mede.jpg", "drum,wine bottle,loudspeaker,table"),
    ("backgrounds/friends_by_Aitzol_Berasategi.jpg", "dog"),
    ("backgrounds/sunset_by_Aitzol_Berasategi.jpg", "sky,sun,grass,mountain"),
    ("backgrounds/picosdeeuropa_by_Aitzol_Berasategi.jpg", "sky,mountain,grass,snow"),
)
_HEIGHT = 300
_SHEET_HEIGHT = 200
_GAP = 8


def segment(url: str, image: Path, classes: str, level: float | None = None) -> Image.Image:
    """Return the image with its mask; without a level the service chooses the background."""
    background: dict[str, str | float] = {}
    if level is not None:
        background = {"background": "auto", "background_level": level}
    media = "image/png" if image.suffix == ".png" else "image/jpeg"
    answer = httpx.post(
        f"{url}/v1/images:segment",
        params={"classes": classes, "format": "overlay", "quality": "fine", **background},
        content=image.read_bytes(),
        headers={"Content-Type": media, "Accept": "image/png"},
        timeout=30,
    )
    answer.raise_for_status()
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


def scaled(image: Image.Image, height: int) -> Image.Image:
    """The image in another height."""
    return image.resize((round(image.width * height / image.height), height))


def pair(url: str, image: Path, classes: str) -> Image.Image:
    """The image, and the image with its mask."""
    parts = (Image.open(image).convert("RGB"), segment(url, image, classes))
    return row([scaled(part, _SHEET_HEIGHT) for part in parts])


def row(tiles: Sequence[Image.Image]) -> Image.Image:
    """Images of one height, side by side."""
    width = sum(tile.width for tile in tiles) + _GAP * (len(tiles) - 1)
    figure = Image.new("RGB", (width, tiles[0].height), "white")
    left = 0
    for tile in tiles:
        figure.paste(tile, (left, 0))
        left += tile.width + _GAP
    return figure


def sheet(url: str, data: Path) -> Image.Image:
    """Two pairs a row, each above its classes."""
    shared = data / "debian/usr/share"
    pairs = [pair(url, shared / name, classes) for name, classes in PHOTOGRAPHS]
    width, line = max(tile.width for tile in pairs), _SHEET_HEIGHT + 3 * _GAP
    figure = Image.new("RGB", (2 * width + _GAP, -(-len(pairs) // 2) * line), "white")
    draw = ImageDraw.Draw(figure)
    for number, (tile, (_, classes)) in enumerate(zip(pairs, PHOTOGRAPHS, strict=True)):
        left, top = number % 2 * (width + _GAP), number // 2 * line
        figure.paste(tile, (left, top))
        draw.text((left, top + _SHEET_HEIGHT + 2), classes.replace(",", ", "), fill="black")
    return figure


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--data", type=Path, help="draw the ten photographs from this folder")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.data is not None:
        figure = sheet(options.url, options.data)
    else:
        figure = row(
            [
                scaled(segment(options.url, ROOT / name, classes, level), _HEIGHT)
                for name, classes, level in EXAMPLES
            ]
        )
    figure.save(options.output, optimize=True, quality=80)


if __name__ == "__main__":
    main()
