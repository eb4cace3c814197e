"""Cells of labelled regions of photographs: what drawings do not show, such as sky, grass and rock.

`regions.json` lists for each photograph boxes that one thing fills: name, left, top, right, bottom,
as shares of the sides. All photographs are CC0, CC-BY-4.0 or from OpenCV's samples (Apache-2.0).
New ones are listed last: the random crops of a photograph depend on its place in the file.

Shapes: S side of a view, H W pixels.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.folder import fetch_debian
from training.photographs.trunk_features import Cells, RunTrunk, collect_cells

REGIONS_FILE = Path(__file__).with_name("regions.json")
# Debian packages of the photographs that other jobs do not need.
_PACKAGES = {"opencv": "opencv-doc", "budgie": "budgie-backgrounds"}
_HEIGHT, _WIDTH = 720, 960
_VIEWS = 22
_STREAM = 23  # separates these random numbers from those of scenes


def photograph(data: Path, key: str) -> Path:
    """The file of a photograph such as "lomiri:seeding.jpg"."""
    source, _, name = key.partition(":")
    share = data / "debian/usr/share"
    folders = {
        "lomiri": share / "backgrounds",
        "opencv": share / "doc/opencv-doc/examples/data",
        "budgie": share / "backgrounds/budgie",
    }
    return folders[source] / name


def fetch_photographs(data: Path) -> None:
    """Download and unpack the packages of photographs that are missing."""
    for source, package in _PACKAGES.items():
        keys = [key for key in read_boxes() if key.startswith(source)]
        if not all(photograph(data, key).exists() for key in keys):
            fetch_debian(data, (package,))


def read_boxes() -> dict[str, list[tuple[str, float, float, float, float]]]:
    """Boxes of each photograph: name, left, top, right, bottom."""
    content: dict[str, list[tuple[str, float, float, float, float]]] = json.loads(
        REGIONS_FILE.read_text(encoding="utf-8")
    )
    return content


@lru_cache(maxsize=1)
def _photographs(data: Path) -> list[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    """Every photograph with its mask."""
    number = {name: place for place, name in enumerate(region_names())}
    found = []
    for key, boxes in read_boxes().items():
        image = Image.open(photograph(data, key)).convert("RGB").resize((_WIDTH, _HEIGHT))
        mask_HW = np.zeros((_HEIGHT, _WIDTH), np.int32)
        for name, left, top, right, bottom in boxes:
            rows = slice(int(top * _HEIGHT), int(bottom * _HEIGHT))
            mask_HW[rows, int(left * _WIDTH) : int(right * _WIDTH)] = number[name] + 1
        found.append((np.asarray(image), mask_HW))
    return found


def region_view(data: Path, size: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Crop number `index`, and its mask: 0 for none, k for `region_names()[k - 1]`."""
    rng = np.random.default_rng((_STREAM, index))
    photographs = _photographs(data)
    return _crop(rng, *photographs[rng.integers(len(photographs))], size)


def _views(
    data: Path, size: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int32], np.random.Generator]]:
    """Yield crops of every photograph, their masks and their random stream."""
    for place, (pixels_HW3, mask_HW) in enumerate(_photographs(data)):
        for view in range(_VIEWS):
            rng = np.random.default_rng((_STREAM, place, view))
            yield (*_crop(rng, pixels_HW3, mask_HW, size), rng)


def _crop(
    rng: np.random.Generator, pixels_HW3: NDArray[np.uint8], mask_HW: NDArray[np.int32], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A random crop, mirrored by half, in other light."""
    share = rng.uniform(0.3, 1)
    height, width = int(_HEIGHT * share), int(_WIDTH * share)
    top, left = rng.integers(_HEIGHT - height + 1), rng.integers(_WIDTH - width + 1)
    step = -1 if rng.random() < 0.5 else 1
    crop = pixels_HW3[top : top + height, left : left + width][:, ::step]
    mask = mask_HW[top : top + height, left : left + width][:, ::step]
    lit = np.clip(crop * np.exp(rng.normal(0, 0.2)) + rng.normal(0, 6, 3), 0, 255)
    whole = (size, size)
    return (
        np.asarray(cv2.resize(lit.astype(np.uint8), whole, interpolation=cv2.INTER_AREA), np.uint8),
        np.asarray(
            cv2.resize(np.ascontiguousarray(mask), whole, interpolation=cv2.INTER_NEAREST), np.int32
        ),
    )


def region_names() -> tuple[str, ...]:
    """Names of the regions."""
    return tuple(sorted({box[0] for boxes in read_boxes().values() for box in boxes}))


def region_cells(data: Path, run: RunTrunk, size: int) -> Cells:
    """Cells of every region in crops of its photograph; named by `region_names`."""
    return collect_cells(
        (run(pixels_SS3), mask_SS, rng) for pixels_SS3, mask_SS, rng in _views(data, size)
    )
