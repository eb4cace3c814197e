"""A head of classes: trained by the command on folders, loaded by a running server."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.package import ModelPackage
from tests.end_to_end.client import over_both
from tests.processes.server import Server
from tests.promises.test_commands import boxes
from training.__main__ import main

Train = Callable[..., int]
NAMES = ("--names", "red,blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images with masks, and images by class."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("images", "masks", "heads", "classes/red", "classes/dark_blue"):
        (folder / name).mkdir(parents=True)
    for seed in range(10):
        image, mask = boxes(seed)
        image.save(folder / "images" / f"{seed}.png")
        mask.save(folder / "masks" / f"{seed}.png")
        image.crop((0, 42, 56, 70)).save(folder / "classes" / "red" / f"{seed}.png")
        image.crop((70, 42, 126, 70)).save(folder / "classes" / "dark_blue" / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def service(run_service: Callable[..., Any], folder: Path) -> Iterator[Server]:
    with run_service(f"--heads={folder / 'heads'}") as running:
        yield running


@pytest.fixture
def train(folder: Path, tiny_package: ModelPackage) -> Train:
    def train(name: str, *arguments: str) -> int:
        output = folder / "heads" / f"{name}.safetensors"
        return main(["head", f"--model={tiny_package.path}", f"--output={output}", *arguments])

    return train


def test_a_running_server_classifies_by_it(
    service: Server, folder: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("colours", f"--images={folder / 'classes'}") == 0
    assert "20 images, 2 classes; on held-out images mean accuracy" in capsys.readouterr().out
    images = [str(folder / "classes" / name / "0.png") for name in ("red", "dark_blue")]
    fields = {"images": images, "classes": ["head:colours"]}
    found = over_both(service, "classify", fields)
    # Folders are in alphabetical order: dark blue, red.
    assert [found[f"{index}.label"][0] for index in (0, 1)] == [2, 1]


@pytest.mark.parametrize(
    ("mask", "arguments", "message"),
    [
        ("same", ["--names", "red"], "has the label 2"),
        ("same", ["--names", "red,blue,green"], "no mask has a pixel of: green"),
        ("same", [], "give --masks and --names together"),
        (None, NAMES, "masks are missing, such as"),
        (Image.new("L", (140, 111)), NAMES, "(112, 140), its map (111, 140)"),
        (Image.new("RGB", (140, 112)), NAMES, "this one is RGB"),
    ],
)
def test_wrong_labels_and_masks_are_named(
    tmp_path: Path,
    folder: Path,
    train: Train,
    capsys: pytest.CaptureFixture[str],
    mask: Any,
    arguments: list[str],
    message: str,
) -> None:
    if isinstance(mask, Image.Image):
        for seed in range(10):
            mask.save(tmp_path / f"{seed}.png")
    masks = folder / "masks" if mask == "same" else tmp_path
    assert train("wrong", f"--images={folder / 'images'}", f"--masks={masks}", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "heads" / "wrong.safetensors").exists()
