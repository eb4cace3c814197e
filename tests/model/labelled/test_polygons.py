"""Masks as polygons, and the project's own photographs with masks."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.labelled.polygons import read_polygons
from model.labelled.sets import SetError

ROOT = Path(__file__).resolve().parents[3]
PHOTOGRAPHS = ROOT / "tests" / "data" / "photographs"
REGIONS = ROOT / "training" / "photographs"


@pytest.fixture
def folder(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """An image of 4 x 2 pixels: a cat before a wall, a dog that does not count, and no polygon."""
    write(tmp_path / "a.jpg", 0)
    polygons = [
        (1, 0, [0, 0, 1, 0, 1, 1, 0, 1]),
        (2, 0, [0, 0, 0, 1, 0, 1]),
        (3, 1, [2, 0, 2, 1, 2, 1]),
    ]
    document = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 2, "width": 4}],
        "categories": [
            {"id": 1, "name": "wall", "isthing": 0},
            {"id": 2, "name": "cat"},
            {"id": 3, "name": "dog"},
        ],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": one, "iscrowd": crowd, "segmentation": [points]}
            for one, crowd, points in polygons
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    return tmp_path


def test_a_later_polygon_covers_an_earlier_one_and_crowds_do_not_count(folder: Path) -> None:
    given = read_polygons(folder)
    assert given.read(0).tolist() == [[1, 0, -1, -1], [1, 0, -1, -1]]
    assert given.read_objects(0).tolist() == [[1, -2, -1, -2], [1, -2, -1, -2]]
    assert given.shown(0) == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].update(segmentation={"counts": "0"}), "run lengths"),
        (lambda d: d["annotations"][0].update(segmentation=[[0, 0, 1]]), "annotation 0 is no"),
        (lambda d: d["annotations"][0].update(category_id=9), "KeyError"),
        (lambda d: d["images"][0].update(file_name="b.jpg"), "1 of 1 images are missing"),
    ],
)
def test_a_malformed_file_is_an_error(
    folder: Path, change: Callable[[Any], None], message: str
) -> None:
    file = folder / "annotations.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(SetError, match=message):
        read_polygons(folder)


def test_the_photographs_are_complete_and_in_one_half() -> None:
    document = json.loads((PHOTOGRAPHS / "annotations.json").read_text())
    size_of = {one["id"]: (one["width"], one["height"]) for one in document["images"]}
    for one in document["images"]:
        with Image.open(PHOTOGRAPHS / one["file_name"]) as image:
            assert image.size == size_of[one["id"]]
    for one in document["annotations"]:
        width, height = size_of[one["image_id"]]
        (points,) = one["segmentation"]
        assert min(points) >= 0
        assert max(points[::2]) <= width
        assert max(points[1::2]) <= height

    things = {one["id"] for one in document["categories"] if one["isthing"]}
    counted = [one for one in document["annotations"] if not one["iscrowd"]]
    shown = {(one["image_id"], one["category_id"]) for one in counted}
    assert sum(category in things for _, category in shown) >= 12
    assert sum(category not in things for _, category in shown) >= 30
    assert sum(file.stat().st_size for file in PHOTOGRAPHS.iterdir()) < 2_000_000

    trained = {
        key
        for file in REGIONS.glob("*regions.json")
        for key in json.loads(file.read_text(encoding="utf-8"))
    }
    tested = {one["source"] for one in document["images"]}
    assert not tested & trained
    readme = (PHOTOGRAPHS / "README.md").read_text(encoding="utf-8")
    table, _, training = readme.partition("\nThe photographs of budgie")
    halves = [re.findall(r"`([\w-]+\.jpg)`", part) for part in (table, training)]
    budgie = {key.removeprefix("budgie:") for key in tested | trained if key.startswith("budgie:")}
    assert budgie <= {*halves[0], *halves[1]}
    assert len([one for one in tested if one.startswith("budgie:")]) == len(halves[1]) == 9


def test_every_photograph_names_its_author_and_licence() -> None:
    document = json.loads((PHOTOGRAPHS / "annotations.json").read_text())
    licences = {one["id"]: one["name"] for one in document["licenses"]}
    own = (ROOT / "NOTICE").read_text(encoding="utf-8").partition("tests/data/photographs/")[2]
    notice = " ".join(own.split())
    for one in document["images"]:
        assert one["author"] in notice
        assert licences[one["license"]] in notice
