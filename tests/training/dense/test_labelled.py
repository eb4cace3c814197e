"""Heads are trained on labelled sets, and are better than the mean map on other images."""

from collections.abc import Callable, Iterable
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
from model.runtime.load import load_runtime
from training.__main__ import main
from training.dense import labelled
from training.dense.encoder import FrozenEncoder
from training.dense.head import NO_CLASS
from training.dense.labelled import LabelledData, hold_out


def known(name: str, folder: Path, kept: Path) -> LabelledData:
    sets: Any = {"train": read_train(name, folder), "test": read_known(name, folder)}
    return LabelledData(**sets, folder=kept)


@pytest.fixture
def folder(write_sets: Callable[[], Path]) -> Path:
    return write_sets()


def own_masks(folder: Path) -> list[Path]:
    return [folder / "boxes" / name for name in ("images", "masks", "names.txt")]


def test_a_package_gets_heads_of_every_task(
    folder: Path, tiny_package: ModelPackage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[Any] = ["--dataset", "nyuv2", folder / "nyuv2"]
    arguments += ["--dataset", "navi-normals", folder / "navi"]
    arguments += ["--segmentation", *own_masks(folder), "--kind", "linear", "--steps", 250]
    arguments += ["--folder", tmp_path / "run", "--output", tmp_path / "package"]
    arguments += ["--model", tiny_package.path]
    assert main(["dense-heads", *map(str, arguments)]) == 0
    package = open_package(tmp_path / "package")
    assert "with depth and normals and segmentation is ready" in capsys.readouterr().out
    assert package.manifest.segmentation_labels == ["ground", "red", "blue"]
    scores = {(s.task, s.row, s.metric): s for s in package.manifest.scores}
    for task, metric, best, is_error in (
        ("depth", "RMSE (m)", 0.9, True),
        ("surface normals", "mean angle (degrees)", 20, True),
        ("segmentation by own classes", "mIoU", 60, False),
    ):
        own, gain = (scores[task, row, metric] for row in ("head", "head - training mean"))
        assert (own.value < best) if is_error else (own.value > best), (task, own)
        assert gain.low is not None
        assert gain.high is not None
        assert gain.high < 0 if is_error else gain.low > 0, (task, gain)
    assert scores["depth", "head", "RMSE (m)"].split == "nyuv2, 5 of 654 images"
    card = (package.path / "README.md").read_text(encoding="utf-8")
    assert "metres, up to 10 m; a linear head, fitted to 12 images of nyuv2." in card
    assert "y down, z away from the camera; a linear head, fitted to 6 images of navi-no" in card
    assert "3 classes; a linear head, fitted to 12 images of images." in card
    pixels = np.random.default_rng(0).random((1, 3, 56, 84), np.float32)
    with closing(load_runtime(package, runtime="onnx")) as runtime:
        assert runtime.estimate("segmentation", pixels).shape == (1, 3, 32, 48)


def test_examples_are_the_maps_at_the_centres_of_cells(
    folder: Path, tiny_package: ModelPackage, tmp_path: Path
) -> None:
    encoder = FrozenEncoder.load(tiny_package)
    with closing(encoder.runtime):
        depth = known("nyuv2", folder / "nyuv2", tmp_path).examples(encoder, "depth")
        normals = known("navi-normals", folder / "navi", tmp_path).examples(encoder, "normals")
    assert depth.maps.shape == (12, 32, 32)
    truth: Any = read_train("nyuv2", folder / "nyuv2")
    middle_HW = truth.read(3)[7::15, 10::20]
    np.testing.assert_array_equal(depth.maps[3], np.nan_to_num(middle_HW).astype(np.float32))
    assert (depth.maps[:, 14] == 0).all()  # was not measured
    assert normals.maps.shape == (6, 3, 32, 32)
    length = np.linalg.norm(normals.maps.astype(np.float32), axis=1)
    assert np.allclose(length[length > 0], 1, atol=1e-2)
    assert 0.3 < (length > 0).mean() <= 1


def test_squares_for_segmentation_keep_proportions_and_lie_everywhere(
    folder: Path, tmp_path: Path
) -> None:
    given = hold_out(read_segmentation(*own_masks(folder)), tmp_path)
    assert (len(given.train.images), len(given.test.images)) == (12, 3)
    starts = set()
    for index in range(12):
        whole, labels = labelled.read_example(given.train, index)
        pixels, part = given._square(index)
        assert pixels.shape == (112, 112, 3)
        (start,) = [x for x in range(29) if np.array_equal(whole[:, x : x + 112], pixels)]
        assert np.array_equal(labels[:, start : start + 112], part)
        starts.add(start)
    assert min(starts) < 5
    assert max(starts) > 23


def test_labels_of_nothing_stay_so(
    folder: Path, tiny_package: ModelPackage, tmp_path: Path
) -> None:
    given = hold_out(read_segmentation(*own_masks(folder)), tmp_path)
    encoder = FrozenEncoder.load(tiny_package)
    with closing(encoder.runtime):
        maps = given.examples(encoder, "segmentation").maps
    assert (maps[:, 0] == NO_CLASS).all()
    assert set(np.unique(maps[:, 1:])) == {0, 1, 2}


def test_a_stopped_run_continues_with_the_next_images(
    folder: Path, tiny_package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled, "IMAGES_AT_ONCE", 4)
    given = known("nyuv2", folder / "nyuv2", tmp_path)
    encoder = FrozenEncoder.load(tiny_package)
    embed = FrozenEncoder.embed
    seen: list[int] = []

    def stopping(self: FrozenEncoder, images: Iterable[Any]) -> Any:
        if len(seen) == 2:
            raise OSError("the disk is full")
        found = embed(self, images)
        seen.append(len(found.cls_PD))
        return found

    with closing(encoder.runtime):
        whole = replace(given, folder=tmp_path / "other").examples(encoder, "depth")
        monkeypatch.setattr(FrozenEncoder, "embed", stopping)
        with pytest.raises(OSError, match="disk is full"):
            given.examples(encoder, "depth")
        seen[:] = [0]
        continued = given.examples(encoder, "depth")
        assert seen == [0, 4]
        again = given.examples(encoder, "depth")
    assert seen == [0, 4]
    for name in ("cls_PD", "patches_PhwD", "maps"):
        np.testing.assert_array_equal(getattr(continued, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_what_cannot_be_trained_on_is_named(folder: Path, tmp_path: Path) -> None:
    images, masks, names = own_masks(folder)
    for number in range(11):
        (images / f"{number}.png").unlink()
    with pytest.raises(SetError, match="images has 4 images; a head needs at least five"):
        hold_out(read_segmentation(images, masks, names), tmp_path)
    Image.new("L", (140, 111)).save(masks / "12.png")
    with pytest.raises(SetError, match=r"12\.png has \(112, 140\), its map \(111, 140\) rows"):
        labelled.read_example(read_segmentation(images, masks, names), 2 - 1)
    (images / "11.png").write_bytes(b"nonsense")
    with pytest.raises(SetError, match=r"11\.png: "):
        labelled.read_example(read_segmentation(images, masks, names), 0)
    with pytest.raises(SetError, match=r"has no official_splits/train/.*had at https://cs\.nyu"):
        read_train("nyuv2", folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "flickr30k", "x"], "--dataset is one of ade20k, nyuv2, navi-depth"),
        (["--dataset", "nyuv2", "nyuv2", "--dataset", "navi-depth", "navi"], "two sets are for d"),
    ],
)
def test_wrong_sets_are_named(
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
