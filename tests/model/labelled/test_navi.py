"""NAVI's photographs in a small folder of its authors' layout."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.labelled.known import read_known
from model.labelled.navi import NaviDepth, NaviNormals, normals_of, square_around
from model.labelled.sets import SetError
from tests.tipserve_cli.conftest import Scripted
from tipserve_cli.evaluation.answers import Answers
from tipserve_cli.evaluation.options import EvaluateOptions
from tipserve_cli.evaluation.tasks import score_normals

FOCAL_LENGTH = 1500.0
HEIGHT, WIDTH = 1024, 1536
# The object in the centre square of 1024 columns, which begins at column 256.
TOP, BOTTOM, LEFT, RIGHT = 200, 600, 556, 756


def plane_m(slope: float = 0.4) -> Any:
    """Depth of a plane z = 0.5 + slope x, seen from above its first column."""
    x = (np.arange(WIDTH) + 0.5) / FOCAL_LENGTH
    return np.tile(0.5 / (1 - slope * x), (HEIGHT, 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scene = tmp_path / "duck" / "wild_set"
    (scene / "images").mkdir(parents=True)
    (scene / "depth").mkdir()
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[TOP:BOTTOM, LEFT:RIGHT] = 255
    # The camera was held upright, and the file says so.
    turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(scene / "images" / "000.jpg", exif=exif)
    depth_m = plane_m()
    shown = np.zeros(depth_m.shape, bool)
    shown[TOP:BOTTOM, LEFT:RIGHT] = True
    coded = np.where(shown, np.rint(65535 * 10 / (1000 * depth_m)), 0)
    Image.fromarray(coded.astype(np.uint16)).save(scene / "depth" / "000.png")
    camera = {"focal_length": FOCAL_LENGTH}
    row = {"filename": "000.jpg", "camera": camera, "image_size": [HEIGHT, WIDTH]}
    (scene / "annotations.json").write_text(json.dumps([row]))
    return tmp_path


def test_an_image_is_the_square_of_its_object(folder: Path) -> None:
    given = read_known("navi-depth", folder)
    assert isinstance(given, NaviDepth)
    assert (given.name, given.published) == ("navi-depth, 1 of 2298 images", ())
    image = Image.open(BytesIO(given.images[0].read()))
    assert (image.size, image.mode) == ((512, 512), "RGB")
    depth_HW = given.read(0)
    assert depth_HW.shape == (512, 512)
    # 200 x 100 pixels after halving: the square has all rows, and 50 columns on each side.
    shown_HW = np.isfinite(depth_HW)
    assert shown_HW.all(0).sum() == pytest.approx(256, abs=4)
    first = shown_HW.all(0).argmax()
    assert first == pytest.approx(128, abs=4)
    white_HW = np.asarray(image)[..., 0] > 128
    assert (white_HW == shown_HW).mean() > 0.98
    depth_m = plane_m()
    assert depth_HW[0, first + 1] == pytest.approx(depth_m[TOP, LEFT], rel=0.005)
    assert np.nanmax(depth_HW) == pytest.approx(depth_m[0, RIGHT], rel=0.005)


def test_normals_are_those_of_the_depth(folder: Path) -> None:
    given = read_known("navi-normals", folder)
    assert isinstance(given, NaviNormals)
    normals_HW3 = given.read(0)
    assert np.isnan(normals_HW3[:, :100]).all()
    wanted = np.array([-0.4, 0, 1]) / np.hypot(0.4, 1)
    exact = normals_of(plane_m()[:50], FOCAL_LENGTH)[1:-1, 1:-1]
    assert np.allclose(exact, wanted, atol=1e-3)
    # Halved, as the image is, and with depth in steps of 0.1 %.
    square_m = plane_m()[TOP:BOTTOM:2, LEFT - 100 : RIGHT + 100 : 2]
    half = normals_of(square_m, FOCAL_LENGTH / 2)[1:-1, 52:-52].mean((0, 1))
    mean = np.nanmean(normals_HW3, axis=(0, 1))
    cosine = (mean * half).sum() / np.linalg.norm(mean) / np.linalg.norm(half)
    assert np.degrees(np.arccos(cosine)) < 3
    flat = normals_of(np.full((5, 5), 2.0), 100.0)
    assert np.allclose(flat[1:-1, 1:-1], (0, 0, 1))
    assert np.isnan(flat[0]).all()
    hole = np.full((5, 5), 2.0)
    hole[2, 2] = 0
    assert np.isnan(normals_of(hole, 100.0)[2, 2]).all()


def test_normals_are_averaged_in_each_image_and_then_over_images(
    folder: Path, answers: Answers, scripted: Scripted
) -> None:
    given = read_known("navi-normals", folder)
    assert isinstance(given, NaviNormals)
    truth_HW3 = given.read(0)
    # The scripted engine finds its answer by the first byte, which all PNG files share.
    scripted.maps = {given.images[0].read()[0]: np.nan_to_num(truth_HW3)}
    result = score_normals(given, answers, EvaluateOptions())
    assert all(len(score.counts) == 1 for score in result.scores)
    values = {score.metric: score.interval().value for score in result.scores}
    assert values["RMSE (degrees)"] == pytest.approx(0, abs=1e-3)
    assert values["under 11.25 degrees"] == 100


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetError, match=r"has no \*/wild_set/annot.*had at https://github.com/goo"):
        read_known("navi-depth", tmp_path / "duck")
    depth = folder / "duck" / "wild_set" / "depth" / "000.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(depth)
    with pytest.raises(SetError, match=r"000\.png has no depth in its middle"):
        read_known("navi-depth", folder).images[0].read()
    depth.write_bytes(b"x")
    with pytest.raises(SetError, match=r"000\.png is no image that can be read"):
        read_known("navi-depth", folder).images[0].read()
    depth.unlink()
    with pytest.raises(SetError, match=r"1 of 2 files are missing, such as .*depth/000\.png"):
        read_known("navi-depth", folder)
    (folder / "duck" / "wild_set" / "annotations.json").write_text("[{}]")
    with pytest.raises(SetError, match="is no list of images as NAVI has it"):
        read_known("navi-depth", folder)


@pytest.mark.parametrize(
    ("columns", "wanted"), [((40, 50), (35, 54)), ((0, 10), (0, 19)), ((90, 100), (80, 99))]
)
def test_a_square_stays_in_the_image(columns: tuple[int, int], wanted: tuple[int, int]) -> None:
    shown_HW = np.zeros((60, 100), bool)
    shown_HW[10:30, slice(*columns)] = True
    assert square_around(shown_HW, Path("x")) == (slice(10, 29), slice(*wanted))
