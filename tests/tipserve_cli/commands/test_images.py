"""Masks, classes and patch embeddings of an image, and of a folder of them."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.tipserve_cli.conftest import Fake
from tipserve_cli.bulk import lines
from tipserve_cli.program import DONE, DONE_WITH_SKIPPED_IMAGES, FAILED, WRONG_USAGE, main

NAMES = ["a.png", "b.png", "d.png", "more/e.png"]


@pytest.fixture
def photos(image: Path) -> Path:
    """Four images, and one that is none."""
    folder = image.parent / "photos"
    (folder / "more").mkdir(parents=True)
    for name in NAMES:
        shutil.copy(image, folder / name)
    (folder / "c.jpg").write_bytes(b"nonsense")
    return folder


def test_an_image_is_read_from_standard_input_and_many_classes_are_grey(
    image: Path, tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(image.read_bytes()))
    monkeypatch.setattr("sys.stdin", stream)
    file = tmp_path / "mask.npy"
    assert main(["segment", "-", "--classes=apple", "-o", str(file)]) == DONE
    assert np.load(file, allow_pickle=False).tolist() == np.ones((40, 60)).tolist()
    fake.head = list(map(str, range(256)))
    command = ["segment", str(image), "--classes=head:many", "-o", str(tmp_path / "mask.png")]
    assert main([*command, "--format=labels"]) == DONE


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("command", "begin"),
    [
        ("segment IMAGE --classes=dog", b"\x89PNG"),
        ("segment IMAGE --classes=dog --format=overlay", b"\x89PNG"),
        ("features IMAGE", b"\x93NUMPY"),
        ("depth IMAGE", b"\x89PNG"),
        ("normals IMAGE --format=npy", b"\x93NUMPY"),
        ("features IMAGE --kind=groups", b"\x89PNG"),
        ("texts dog", b'[{"text": "dog"'),
    ],
)
def test_a_pipe_gets_the_content_only(
    image: Path,
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    command: str,
    begin: bytes,
) -> None:
    assert main([*command.replace("IMAGE", str(image)).split(), "-o", "-"]) == DONE
    printed = capsysbinary.readouterr()
    assert printed.out.startswith(begin)
    if begin == b"\x89PNG":
        Image.open(io.BytesIO(printed.out)).load()
    assert (b"1 dog: 100.0 %" in printed.err) == command.startswith("segment")
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.parametrize("command", ["segment a --format=coco", "classify a"])
def test_what_cannot_be_piped_says_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--classes=b", "-o", "-"]) == WRONG_USAGE
    assert "--output must end in" in capsys.readouterr().err


def test_an_overlay_may_be_a_jpeg(image: Path, tmp_path: Path, fake: Fake) -> None:
    out = tmp_path / "seen.jpg"
    command = ["segment", str(image), "--classes=dog", "--format=overlay", "-o", str(out)]
    assert main(command) == DONE
    with Image.open(out) as drawn:
        assert (drawn.format, drawn.size) == ("JPEG", (60, 40))


@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
@pytest.mark.parametrize("kind", ["coco", "overlay", "mask"])
def test_a_folder_becomes_a_file_or_a_folder_that_continues_where_it_stopped(
    photos: Path,
    tmp_path: Path,
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    out = tmp_path / ("found.json" if kind == "coco" else "seen")
    command = ["segment", str(photos), "--classes=dog,cat", f"--format={kind}", "-o", str(out)]
    monkeypatch.setattr(lines, "PART_ITEMS", 1)
    fake.most_images = 3
    assert main(command) == FAILED
    assert not out.is_file()
    fake.num_images, fake.most_images = 0, 1000
    changed = ("--min-area-share=0.5", "min_area_share: was 0.001")
    changed = changed if kind == "coco" else ("--format=labels", f'format: was "{kind}"')
    assert main([*command, changed[0]]) == FAILED
    assert f"with other options ({changed[1]}" in capsys.readouterr().err
    assert main(command) == DONE_WITH_SKIPPED_IMAGES
    assert fake.num_images < 5
    printed = capsys.readouterr()
    assert "1 images were skipped" in printed.err
    if kind == "coco":
        assert "4 instances in 4 images" in printed.out
        check_coco(out)
        assert main(command) == DONE_WITH_SKIPPED_IMAGES
        assert f"{out} is finished" in capsys.readouterr().out
        assert main([*command, "--quality=fine"]) == FAILED
    else:
        assert printed.out == f"{out}: 4 images\n"
        assert sorted(str(path.relative_to(out)) for path in out.rglob("*.png")) == NAMES
        drawn = Image.open(out / "more" / "e.png")
        tinted = (int(0.4 * 0x66), 0, int(0.4 * 0xFF))  # a black pixel of the first class
        assert drawn.size == (60, 40)
        assert drawn.getpixel((5, 5)) == (tinted if kind == "overlay" else 1)
    assert main([*command, "--overwrite"]) == DONE_WITH_SKIPPED_IMAGES


def check_coco(file: Path) -> None:
    """The file and its list of skipped images, and nothing else beside them."""
    assert {path.name for path in file.parent.iterdir()} == {
        "found.json.errors.jsonl", "found.json", "image.png", "photos"
    }  # fmt: skip
    errors = file.with_name("found.json.errors.jsonl")
    (skipped,) = map(json.loads, errors.read_text().splitlines())
    assert (skipped["file_name"], skipped["code"]) == ("c.jpg", "invalid_image")
    found = json.loads(file.read_text())
    assert [one["file_name"] for one in found["images"]] == NAMES
    assert [one["score"] for one in found["annotations"]] == [0.75] * 4
    first = found["annotations"][0]
    assert coco_mask.toBbox(first["segmentation"]).tolist() == first["bbox"]


def test_maps_become_files_of_numbers_or_colours(image: Path, tmp_path: Path, fake: Fake) -> None:
    for command, file, mode in (
        ("depth", "d.png", "P"),
        ("depth --format=millimetres", "d.png", "I;16"),
        ("normals --resolution=56", "n.png", "RGB"),
    ):
        assert main([*command.split(), str(image), "-o", str(tmp_path / file)]) == DONE
        with Image.open(tmp_path / file) as drawn:
            assert (drawn.size, drawn.mode) == ((60, 40), mode)
    assert fake.requests[-1].fields == {"resolution": 56, "fit": "squash"}
    assert main(["normals", str(image), "-o", str(tmp_path / "n.npy")]) == DONE
    assert np.load(tmp_path / "n.npy").shape == (40, 60, 3)


@pytest.mark.usefixtures("fake")
def test_maps_of_several_images_have_their_names(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    depths = tmp_path / "depths"
    command = ["depth", f"{photos}/*.png", f"{photos}/more", "--format=npy", "-o", str(depths)]
    assert main(command) == DONE
    assert sorted(path.name for path in depths.glob("*.npy")) == [
        "a.npy",
        "b.npy",
        "d.npy",
        "e.npy",
    ]
    shutil.copy(photos / "a.png", photos / "more" / "a.jpg")
    assert main([*command[:-1], str(tmp_path / "other")]) == FAILED
    assert "more/a.jpg would both become a.npy; rename one." in capsys.readouterr().err
    assert main(["normals", str(photos), "-o", str(photos)]) == FAILED
    assert "contains other files (a.png); give an empty folder." in capsys.readouterr().err


@pytest.mark.parametrize("named", ["head:pets", "model"])
def test_the_categories_of_a_coco_file_are_the_classes_of_a_head(
    photos: Path,
    tmp_path: Path,
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    named: str,
) -> None:
    monkeypatch.setattr(lines, "PART_ITEMS", 1)
    (photos / "c.jpg").unlink()
    file = tmp_path / "found.json"
    command = ["segment", str(photos), f"--classes={named}", "--format=coco", "-o", str(file)]
    fake.most_images = 2
    assert main(command) == FAILED
    fake.most_images, fake.head = 1000, ["a cow"]
    assert main(command) == FAILED
    assert f"The classes of {named} changed during the job" in capsys.readouterr().err
    fake.head = ["a cat", "a dog"]
    assert main([*command, "--overwrite"]) == DONE
    found = json.loads(file.read_text())
    assert [one["name"] for one in found["categories"]] == ["a cat", "a dog"]
    assert [one["category_id"] for one in found["annotations"]] == [1, 1, 1, 1]


@pytest.mark.usefixtures("fake")
def test_the_classes_of_an_image_are_printed(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("dog\nsea gull\n")
    for classes in (["--classes", "dog, sea gull"], ["--classes-file", str(names)]):
        assert main(["classify", str(image), *classes]) == DONE
        assert capsys.readouterr().out.splitlines() == [
            " 75.00 %   0.375  sea gull",
            " 25.00 %   0.125  dog",
        ]
    assert main(["classify", str(image), "--classes=dog,cat", "--top=1"]) == DONE
    assert capsys.readouterr().out.splitlines() == [" 75.00 %   0.375  cat"]


@pytest.mark.usefixtures("fake")
def test_the_classes_of_a_folder_become_a_table_or_lines(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", str(photos), "--classes=dog,cat", "-o"]
    table, listed = tmp_path / "found.csv", tmp_path / "found.jsonl"
    assert main([*command, str(table)]) == DONE_WITH_SKIPPED_IMAGES
    printed = capsys.readouterr()
    assert "4 images" in printed.out
    assert "1 images were skipped" in printed.err
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in rows[:3]] == [
        ("a.png", "1", "cat", "0.75", "0.375"),
        ("a.png", "2", "dog", "0.25", "0.125"),
        ("b.png", "1", "cat", "0.75", "0.375"),
    ]
    assert rows[-1]["file"] == "more/e.png"
    (skipped,) = map(json.loads, (tmp_path / "found.csv.errors.jsonl").read_text().splitlines())
    assert (skipped["file_name"], skipped["code"]) == ("c.jpg", "invalid_image")
    assert main([*command, str(table)]) == FAILED
    assert f"{table} exists" in capsys.readouterr().err
    assert main([*command, str(table), "--overwrite"]) == DONE_WITH_SKIPPED_IMAGES
    assert main([*command, str(listed), "--top=1"]) == DONE_WITH_SKIPPED_IMAGES
    found = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [one["file"] for one in found] == NAMES
    assert found[0]["classes"] == [{"name": "cat", "probability": 0.75, "cosine": 0.375}]


def test_patch_embeddings_become_an_array_or_an_image(
    image: Path, tmp_path: Path, fake: Fake
) -> None:
    array, drawing = tmp_path / "f.npy", tmp_path / "f.png"
    assert main(["features", str(image), "-o", str(array), "--features=values"]) == DONE
    assert np.load(array, allow_pickle=False).shape == (2, 3, 4)
    for kind in ([], ["--kind=groups", "--resolution=56", "--fit=squash"]):
        assert main(["features", str(image), "-o", str(drawing), *kind]) == DONE
        with Image.open(drawing) as read:
            assert (read.size, read.mode) == ((60, 40), "P" if kind else "RGB")
    drawn = {"kind": "colors", "features": "patches", "fit": "aspect"}
    assert [one.fields for one in fake.requests] == [
        {"outputs": ["values"], "fit": "aspect"},
        drawn,
        {**drawn, "kind": "groups", "fit": "squash", "resolution": 56},
    ]
