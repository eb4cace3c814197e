"""Masks as files, by a fake engine or by the bundled model in this process."""

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
from tipserve_cli.program import DONE, DONE_WITH_SKIPPED_IMAGES, FAILED, main


@pytest.mark.slow
def test_every_kind_of_file_shows_the_same_mask(image: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("mask.png", "mask.npy", "seen.png")]
    for file in files:
        options = ["--format=overlay"] if file.stem == "seen" else []
        arguments = ["segment", str(image), "--classes= apple ,night", "-o", str(file)]
        assert main([*arguments, *options]) == 0
    labels_HW = np.load(files[1], allow_pickle=False)
    assert labels_HW.shape == (40, 60)
    assert set(np.unique(labels_HW)) <= {1, 2}
    with Image.open(files[0]) as mask, Image.open(files[2]) as seen:
        np.testing.assert_array_equal(np.asarray(mask), labels_HW)
        assert seen.size == (60, 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [image.name, *(file.name for file in files)]
    )


@pytest.mark.usefixtures("fake")
def test_an_image_is_read_from_standard_input(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(image.read_bytes()))
    monkeypatch.setattr("sys.stdin", stream)
    file = tmp_path / "mask.npy"
    assert main(["segment", "-", "--classes=apple", "-o", str(file)]) == 0
    assert np.load(file, allow_pickle=False).tolist() == np.ones((40, 60)).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--classes=a", "-o", "mask.jpg"],
            "--output must end in .png or .npy for --format mask, not mask.jpg.",
        ),
        (["--classes=a", "-o", "mask.npy", "--format=overlay"], "--output must end in .png"),
        (["--classes=a", "-o", "mask.png", "--format=coco"], "must end in .json for --format coco"),
        (
            [f"--classes={','.join(map(str, range(256)))}", "-o", "m.png"],
            "256 classes given, at most 255",
        ),
        (["--classes=a,a", "-o", "mask.png"], "is given twice"),
        (["--classes=,", "-o", "mask.png"], "classes is empty"),
        (["--classes=a", "-o", "mask.png", "--resolution=13"], "resolution must be a multiple"),
        (["--classes=a", "-o", "no/such/mask.png"], "no/such is not a folder"),
        (["--classes=a", "-o", "image.png/mask.png"], "image.png is not a folder"),
    ],
)
def test_invalid_arguments_are_named_and_nothing_is_written(
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["segment", str(image), *options]) == FAILED
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.usefixtures("fake")
def test_a_broken_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.jpg"
    file.write_bytes(b"nonsense")
    assert main(["segment", str(file), "--classes=a", "-o", str(tmp_path / "m.png")]) == FAILED
    assert f"{file}: the image cannot be decoded" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
def test_a_folder_becomes_a_coco_file_that_continues_where_it_stopped(
    image: Path,
    tmp_path: Path,
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "d.png", "more/e.png"):
        shutil.copy(image, folder / name)
    (folder / "c.jpg").write_bytes(b"nonsense")
    file = tmp_path / "found.json"
    command = ["segment", str(folder), "--classes=dog,cat", "--format=coco", "-o", str(file)]
    assert main([*command[:3], "-o", str(tmp_path / "mask.png")]) == FAILED
    assert "--format mask is of one image; coco takes a folder" in capsys.readouterr().err
    monkeypatch.setattr(lines, "PART_ITEMS", 1)
    fake.most_images = 3
    assert main(command) == FAILED
    assert not file.exists()
    fake.num_images, fake.most_images = 0, 1000
    assert main([*command, "--min-area-share=0.5"]) == FAILED
    assert "with other options (min_area_share: was 0.001" in capsys.readouterr().err
    assert main(command) == DONE_WITH_SKIPPED_IMAGES
    num_asked = fake.num_images
    assert num_asked < 5
    assert "4 instances in 4 images" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "found.errors.jsonl", "found.json", "image.png", "photos"
    ]  # fmt: skip
    (skipped,) = map(json.loads, (tmp_path / "found.errors.jsonl").read_text().splitlines())
    assert (skipped["file_name"], skipped["code"]) == ("c.jpg", "invalid_image")
    found = json.loads(file.read_text())
    names = [one["file_name"] for one in found["images"]]
    assert names == ["a.png", "b.png", "d.png", "more/e.png"]
    assert [one["score"] for one in found["annotations"]] == [0.75] * 4
    first = found["annotations"][0]
    assert coco_mask.toBbox(first["segmentation"]).tolist() == first["bbox"]
    assert main(command) == DONE_WITH_SKIPPED_IMAGES
    assert fake.num_images == num_asked


@pytest.mark.parametrize("named", ["head:pets", "model"])
def test_the_categories_of_a_coco_file_are_the_classes_of_a_head(
    image: Path,
    tmp_path: Path,
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    named: str,
) -> None:
    monkeypatch.setattr(lines, "PART_ITEMS", 1)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png", "d.png"):
        shutil.copy(image, folder / name)
    file = tmp_path / "found.json"
    command = ["segment", str(folder), f"--classes={named}", "--format=coco", "-o", str(file)]
    fake.most_images = 2
    assert main(command) == FAILED
    fake.most_images, fake.head = 1000, ["a cow"]
    assert main(command) == FAILED
    assert f"The classes of {named} changed during the job" in capsys.readouterr().err
    fake.head = ["a cat", "a dog"]
    assert main([*command, "--overwrite"]) == DONE
    assert main(command) == DONE
    found = json.loads(file.read_text())
    assert [one["name"] for one in found["categories"]] == ["a cat", "a dog"]
    assert [one["category_id"] for one in found["annotations"]] == [1, 1, 1, 1]


def test_a_palette_does_not_hold_a_head_of_many_classes(
    image: Path, tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.head = list(map(str, range(256)))
    command = ["segment", str(image), "--classes=head:many", "-o", str(tmp_path / "mask.png")]
    assert main(command) == FAILED
    assert "256 classes given, at most 255 fit into a PNG mask" in capsys.readouterr().err
    assert main([*command, "--format=labels"]) == DONE
