"""Frozen encoders, and heads trained on labelled sets: better than the mean map on other images."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.labelled.known import read_known, read_train
from model.labelled.sets import SetError, read_segmentation
from model.package import ModelPackage, open_package
from model.preprocess import Fit, prepare_image
from training.__main__ import main
from training.dense import labelled
from training.dense.labelled import FrozenEncoder, LabelledData, hold_out

WIDE = np.random.default_rng(1).integers(0, 256, (56, 84, 3), np.uint8)


@pytest.mark.parametrize(
    ("fit", "size_hw"), [("aspect", (56, 84)), ("squash", (56, 56)), (None, (56, 56))]
)
def test_an_image_is_embedded_as_it_is_served(
    tiny_package: ModelPackage, fit: Fit | None, size_hw: tuple[int, int]
) -> None:
    encoder = FrozenEncoder.load(tiny_package)
    with closing(encoder.runtime):
        found = encoder.as_served(WIDE, fit) if fit else encoder.embed([WIDE] * 9)
        output = encoder.runtime.encode_images(prepare_image(WIDE, size_hw)[None])
    patches = output.patches_BND.reshape(1, size_hw[0] // 14, size_hw[1] // 14, -1)
    assert len(found.cls_PD) == (1 if fit else 9)
    np.testing.assert_allclose(found.cls_PD[-1:], output.cls1_BD, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(found.patches_PhwD[-1:], patches, rtol=2e-3, atol=1e-3)


def known(name: str, folder: Path, kept: Path) -> LabelledData:
    sets: Any = {"train": read_train(name, folder), "test": read_known(name, folder)}
    return LabelledData(**sets, folder=kept)


@pytest.fixture
def folder(write_sets: Callable[[], Path]) -> Path:
    return write_sets()


@pytest.fixture
def boxes(folder: Path) -> list[Path]:
    return [folder / "boxes" / name for name in ("images", "masks", "names.txt")]


@pytest.fixture
def encoder(tiny_package: ModelPackage) -> Iterator[FrozenEncoder]:
    encoder = FrozenEncoder.load(tiny_package)
    with closing(encoder.runtime):
        yield encoder


def test_a_package_gets_heads_of_every_task(
    folder: Path, boxes: list[Path], tiny_package: ModelPackage, tmp_path: Path
) -> None:
    arguments: list[Any] = ["--dataset", "nyuv2", folder / "nyuv2"]
    arguments += ["--dataset", "navi-normals", folder / "navi"]
    arguments += ["--segmentation", *boxes, "--kind", "linear", "--steps", 250]
    arguments += ["--folder", tmp_path / "run", "--output", tmp_path / "package"]
    assert main(["dense-heads", "--model", *map(str, [tiny_package.path, *arguments])]) == 0
    package = open_package(tmp_path / "package")
    assert package.manifest.segmentation_labels == ["ground", "red", "blue"]
    scores = {(s.task, s.row, s.metric): s for s in package.manifest.scores}
    for task, metric, sign, worst in (
        ("depth", "RMSE (m)", -1, 0.9),
        ("surface normals", "mean angle (degrees)", -1, 20),
        ("segmentation by own classes", "mIoU", 1, 60),
    ):
        own, gain = (scores[task, row, metric] for row in ("head", "head - training mean"))
        assert sign * own.value > sign * worst, (task, own)
        assert gain.low is not None
        assert gain.high is not None
        assert min(sign * gain.low, sign * gain.high) > 0, (task, gain)
    assert scores["depth", "head", "RMSE (m)"].split == "nyuv2, 5 of 654 images"
    card = (package.path / "README.md").read_text(encoding="utf-8")
    assert "metres, up to 10 m; a linear head, fitted to 12 images of nyuv2." in card
    assert "y down, z away from the camera; a linear head, fitted to 6 images of navi-no" in card
    assert "3 classes; a linear head, fitted to 12 images of images." in card


def test_a_stopped_run_continues_with_the_next_images(
    folder: Path, encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled, "IMAGES_AT_ONCE", 4)
    given = known("nyuv2", folder / "nyuv2", tmp_path)
    whole = replace(given, folder=tmp_path / "other").examples(encoder)
    embed, seen = FrozenEncoder.embed, list[int]()

    def stopping(self: FrozenEncoder, images: Iterable[Any]) -> Any:
        if len(seen) == 2:
            raise OSError("the disk is full")
        seen.append(4)
        return embed(self, images)

    monkeypatch.setattr(FrozenEncoder, "embed", stopping)
    with pytest.raises(OSError, match="disk is full"):
        given.examples(encoder)
    seen[:] = []
    for _ in range(2):
        found = given.examples(encoder)
        assert seen == [4]
        for name in ("cls_PD", "patches_PhwD", "maps"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_what_cannot_be_trained_on_is_named(
    folder: Path, boxes: list[Path], tmp_path: Path
) -> None:
    images, masks, _ = boxes
    for number in range(11):
        (images / f"{number}.png").unlink()
    Image.new("L", (140, 111)).save(masks / "12.png")
    (images / "11.png").write_bytes(b"nonsense")
    given = read_segmentation(*boxes)
    for call, message in (
        (lambda: hold_out(given, tmp_path), "images has 4 images; a head needs at least five"),
        (lambda: labelled.read_example(given, 0), r"11\.png: "),
        (lambda: labelled.read_example(given, 1), r"12\.png has \(112, 140\), its map \(111, 140"),
        (lambda: read_train("nyuv2", folder), "has no official_splits/train"),
    ):
        with pytest.raises(SetError, match=message):
            call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "flickr30k", "x"], "--dataset is one of ade20k, nyuv2, navi-depth"),
        (["--dataset", "nyuv2", "nyuv2", "--dataset", "navi-depth", "navi"], "two sets are for d"),
        (["--steps", "0"], "greater than 0"),
    ],
)
def test_wrong_options_are_named(
    folder: Path,
    tiny_package: ModelPackage,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    paths = ["--model", str(tiny_package.path), "--output", "package"]
    assert main(["dense-heads", *arguments, *paths]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "package").exists()
