"""Small labelled sets in their authors' layouts, whose colours tell what is true of an image."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"grey": (120, 120, 110), "red": (220, 40, 30), "blue": (20, 60, 230)}
# Of a photograph of NAVI: pixels, and focal length in pixels.
SIDES_HW, FOCAL_LENGTH = (256, 384), 375.0


def noisy(pixels: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Pixels with some noise."""
    return Image.fromarray(np.clip(pixels + rng.normal(0, 9, pixels.shape), 0, 255).astype("u1"))


def write_nyuv2(folder: Path, split: str, count: int, rng: np.random.Generator) -> None:
    """Rooms with a red wall at 1.5 m or a blue one at 5 m, as BTS's script writes them."""
    scene = folder / "official_splits" / split / "bedroom"
    scene.mkdir(parents=True)
    for number in range(count):
        colour, millimetres = (("red", 1500), ("blue", 5000))[number % 2]
        pixels = np.full((480, 640, 3), COLOURS[colour])
        depth = np.full((480, 640), millimetres, np.uint16)
        depth[200:240] = 0  # not measured
        noisy(pixels, rng).save(scene / f"rgb_{number:05d}.jpg")
        Image.fromarray(depth).save(scene / f"sync_depth_{number:05d}.png")


def write_navi(folder: Path, scene: str, count: int, rng: np.random.Generator) -> None:
    """A red plane that is turned to the left or a blue one to the right."""
    place = folder / "duck" / scene
    for name in ("images", "depth"):
        (place / name).mkdir(parents=True)
    rows = []
    for number in range(count):
        colour, slope = (("red", 0.8), ("blue", -0.8))[number % 2]
        pixels = np.full((*SIDES_HW, 3), COLOURS["grey"])
        shown = np.zeros(SIDES_HW, bool)
        top, left = rng.integers(10, 60), rng.integers(80, 140)
        shown[top : top + 150, left : left + 150] = True
        pixels[shown] = COLOURS[colour]
        x = (np.arange(SIDES_HW[1]) + 0.5) / FOCAL_LENGTH
        depth_m = np.tile(0.5 / (1 - slope * x), (SIDES_HW[0], 1))
        coded = np.where(shown, np.rint(65535 * 10 / (1000 * depth_m)), 0)
        noisy(pixels, rng).save(place / "images" / f"{number:03d}.jpg")
        Image.fromarray(coded.astype(np.uint16)).save(place / "depth" / f"{number:03d}.png")
        camera = {"focal_length": FOCAL_LENGTH}
        rows.append({"filename": f"{number:03d}.jpg", "camera": camera, "image_size": SIDES_HW})
    (place / "annotations.json").write_text(json.dumps(rows))


def write_masks(folder: Path, count: int, rng: np.random.Generator) -> None:
    """A red and a blue box on grey ground, with masks; the frame of an image has no label."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels, labels = np.full((112, 140, 3), COLOURS["grey"]), np.zeros((112, 140), np.uint8)
        for label, name in enumerate(("red", "blue"), start=1):
            top, left = rng.integers(0, 42), (label - 1) * 70 + rng.integers(0, 14)
            place = np.s_[top : top + 70, left : left + 56]
            pixels[place], labels[place] = COLOURS[name], label
        labels[:2] = 255
        noisy(pixels, rng).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{number}.png")
    (folder / "names.txt").write_text("ground\nred\nblue\n")


@pytest.fixture
def write_sets(tmp_path: Path) -> Callable[[], Path]:
    """Write all sets; returns the folder that has them."""

    def write() -> Path:
        folder, rng = tmp_path / "sets", np.random.default_rng(0)
        for split, count in (("train", 12), ("test", 5)):
            write_nyuv2(folder / "nyuv2", split, count, rng)
        for scene, count in (("multiview_00_pixel", 6), ("wild_set", 4)):
            write_navi(folder / "navi", scene, count, rng)
        write_masks(folder / "boxes", 15, rng)
        return folder

    return write
