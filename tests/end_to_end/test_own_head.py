"""A head: trained by the command on a few images, loaded by a running server, same over both."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from model.package import ModelPackage
from training.__main__ import main

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

COLOURS = {"ground": (120, 120, 110), "red": (220, 40, 30), "blue": (20, 60, 230)}


def draw(seed: int) -> tuple[Image.Image, Image.Image]:
    """A red and a blue rectangle on noise, and its mask."""
    rng = np.random.default_rng(seed)
    pixels = np.full((112, 140, 3), COLOURS["ground"])
    labels = np.zeros((112, 140), np.uint8)
    for label, name in enumerate(("red", "blue"), start=1):
        top, left = rng.integers(0, 42), (label - 1) * 70
        place = np.s_[top : top + 70, left : left + 56]
        pixels[place], labels[place] = COLOURS[name], label
    noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy), Image.fromarray(labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images with masks, and images by class."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("images", "masks", "heads", "classes/red", "classes/dark_blue"):
        (folder / name).mkdir(parents=True)
    for seed in range(10):
        image, mask = draw(seed)
        image.save(folder / "images" / f"{seed}.png")
        mask.save(folder / "masks" / f"{seed}.png")
        image.crop((0, 42, 56, 70)).save(folder / "classes" / "red" / f"{seed}.png")
        image.crop((70, 42, 126, 70)).save(folder / "classes" / "dark_blue" / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def service(run_service: Callable[..., Any], folder: Path) -> Iterator["Service"]:
    with run_service(f"--heads={folder / 'heads'}") as running:
        yield running


def train(folder: Path, package: ModelPackage, name: str, *arguments: str) -> int:
    output = folder / "heads" / f"{name}.safetensors"
    return main(["head", "--model", str(package.path), "--output", str(output), *arguments])


def with_masks(folder: Path) -> list[str]:
    return ["--images", str(folder / "images"), "--masks", str(folder / "masks")]


def encoded(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def test_a_running_server_classifies_by_it(
    service: "Service",
    folder: Path,
    tiny_package: ModelPackage,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(folder, tiny_package, "colours", "--images", str(folder / "classes")) == 0
    assert "20 images, 2 classes; on held-out images mean accuracy" in capsys.readouterr().out
    images = [encoded(folder, f"classes/{name}/0.png") for name in ("red", "dark_blue")]
    fields = {"images": images, "classes": ["head:colours"]}

    by_rest = service.over_rest("classify", fields)
    by_grpc = service.over_grpc("classify", fields)

    for name, array in by_rest.items():
        assert np.array_equal(array, by_grpc[name])
    # Folders are in alphabetical order: dark blue, red.
    best = [by_rest[f"{index}.label"][0] for index in (0, 1)]
    assert best == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--names", "red"], "has the label 2"),
        (["--names", "red,blue,green"], "no mask has a pixel of: green"),
        ([], "give --masks and --names together"),
    ],
)
def test_wrong_labels_are_named(
    folder: Path,
    tiny_package: ModelPackage,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert train(folder, tiny_package, "wrong", *with_masks(folder), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "heads" / "wrong.safetensors").exists()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "0.png is missing"),
        (Image.new("L", (140, 111)), "(111, 140), its image (112, 140)"),
        (Image.new("RGB", (140, 112)), "grey or palette PNGs, this one is RGB"),
    ],
)
def test_a_wrong_mask_is_named(
    tmp_path: Path,
    folder: Path,
    tiny_package: ModelPackage,
    capsys: pytest.CaptureFixture[str],
    mask: Image.Image | None,
    message: str,
) -> None:
    (tmp_path / "heads").mkdir()
    if mask is not None:
        mask.save(tmp_path / "0.png")
    paths = ["--images", str(folder / "images"), "--masks", str(tmp_path), "--names", "a,b"]

    assert train(tmp_path, tiny_package, "wrong", *paths) == 2
    assert message in capsys.readouterr().err
