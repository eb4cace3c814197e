"""Draws a figure of the documentation with a running service: each example next to its mask.

`python examples/make_figure.py --url http://localhost:8000 --output docs/images/first-light.png`
"""

import argparse
import io
from pathlib import Path

import httpx
from PIL import Image

HERE = Path(__file__).parent
# Image, classes, and the cosine below which a pixel is background.
EXAMPLES = (
    ("scene.png", "burger,sunflower,book", "0.08"),
    ("fruits.jpg", "orange,banana,lemon,kiwi", "0.08"),
)
_HEIGHT = 300
_GAP = 8


def segment(url: str, image: Path, classes: str, threshold: str) -> Image.Image:
    """Return the image with the service's mask drawn over it."""
    media = "image/png" if image.suffix == ".png" else "image/jpeg"
    answer = httpx.post(
        f"{url}/v1/images:segment",
        params={"classes": classes, "format": "overlay", "background_threshold": threshold},
        content=image.read_bytes(),
        headers={"Content-Type": media, "Accept": "image/png"},
        timeout=30,
    )
    answer.raise_for_status()
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    return image.resize((round(image.width * _HEIGHT / image.height), _HEIGHT))


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    tiles = []
    for name, classes, threshold in EXAMPLES:
        tiles.append(_scaled(Image.open(HERE / name).convert("RGB")))
        tiles.append(_scaled(segment(options.url, HERE / name, classes, threshold)))
    width = sum(tile.width for tile in tiles) + _GAP * (len(tiles) - 1)
    figure = Image.new("RGB", (width, _HEIGHT), "white")
    left = 0
    for tile in tiles:
        figure.paste(tile, (left, 0))
        left += tile.width + _GAP
    figure.save(options.output, optimize=True)


if __name__ == "__main__":
    main()
