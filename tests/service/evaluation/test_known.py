"""Known sets in small folders of their authors' layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from service.commands.evaluate import KnownName
from service.evaluation.known import LAYOUTS, NAMES, read_known
from service.evaluation.sets import (
    CaptionedSet,
    LabelledSet,
    SegmentationSet,
    SetError,
    read_names,
)

Write = Callable[..., Path]


def test_every_set_is_a_choice_and_names_its_parts() -> None:
    assert set(get_args(KnownName)) == set(LAYOUTS)
    assert all(layout.source.startswith("http") for layout in LAYOUTS.values())
    assert all(layout.published for layout in LAYOUTS.values())


@pytest.mark.parametrize(
    ("file", "count", "some"),
    [
        ("ade20k.txt", 150, {0: "wall", 44: "chest of drawers", 141: "crt screen", 149: "flag"}),
        ("voc21.txt", 21, {0: "background", 11: "dining table", 20: "tv monitor"}),
        ("context59.txt", 59, {0: "aeroplane", 39: "potted plant", 58: "wood"}),
        ("imagenet.txt", 1000, {0: "n01440764 tench", 999: "n15075141 toilet paper"}),
    ],
)
def test_class_names_are_in_the_order_of_labels(
    file: str, count: int, some: dict[int, str]
) -> None:
    names = read_names(NAMES / file)
    assert len(names) == count
    assert {index: names[index] for index in some} == some


def test_ade20k_has_no_class_zero(tmp_path: Path, write: Write) -> None:
    with pytest.raises(SetError, match=r"has no images/validation\. ade20k needs .*csail\.mit"):
        read_known("ade20k", tmp_path)
    write(tmp_path / "images" / "validation" / "ADE_val_00000001.jpg", 1)
    (tmp_path / "annotations" / "validation").mkdir(parents=True)
    with pytest.raises(SetError, match="1 of 1 masks are missing"):
        read_known("ade20k", tmp_path)
    write(tmp_path / "annotations" / "validation" / "ADE_val_00000001.png", [[0, 1, 150]])
    given = read_known("ade20k", tmp_path)
    assert isinstance(given, SegmentationSet)
    assert (given.name, given.published) == ("ade20k, 1 of 2000 images", ())
    assert given.read_mask(0).tolist() == [[-1, 0, 149]]


def test_pascal_sets_follow_their_lists(tmp_path: Path, write: Write) -> None:
    for stem in ("a", "b", "c"):
        write(tmp_path / "JPEGImages" / f"{stem}.jpg", 1)
        write(tmp_path / "SegmentationClass" / f"{stem}.png", [[0, 20, 255]])
        write(tmp_path / "SegmentationClassContext" / f"{stem}.png", [[0, 1, 59]])
    write(tmp_path / "ImageSets" / "Segmentation" / "val.txt", "c\na\n")
    write(tmp_path / "ImageSets" / "SegmentationContext" / "val.txt", "b\n")
    masks = {"voc21": [0, 20, -1], "context59": [-1, 0, 58], "context60": [0, 1, 59]}
    for name, wanted in masks.items():
        given = read_known(name, tmp_path)
        assert isinstance(given, SegmentationSet)
        assert given.read_mask(0).tolist() == [wanted]
        stems = [image.path.stem for image in given.images]
        assert stems == (["c", "a"] if name == "voc21" else ["b"])
        assert ("background" in given.names) == (name != "context59")
    write(tmp_path / "ImageSets" / "Segmentation" / "val.txt", "c\nd\n")
    with pytest.raises(SetError, match=r"1 of 2 images are missing, such as .*JPEGImages/d\.jpg"):
        read_known("voc21", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "file", "place"),
    [
        ("coco", "val2014", "dataset_coco.json", {"filepath": "val2014"}),
        ("flickr30k", "flickr30k-images", "dataset_flickr30k.json", {}),
    ],
)
def test_captions_are_those_of_the_test_split(
    tmp_path: Path, write: Write, name: str, folder: str, file: str, place: dict[str, str]
) -> None:
    def row(image: str, split: str, *captions: str) -> dict[str, object]:
        sentences = [{"raw": caption} for caption in captions]
        return {"filename": image, "split": split, "sentences": sentences, **place}

    rows = [row("1.jpg", "train", "x"), row("2.jpg", "test", "a dog. ", "a pet")]
    write(tmp_path / file, json.dumps({"images": rows}))
    write(tmp_path / folder / "2.jpg", 2)
    given = read_known(name, tmp_path)
    assert isinstance(given, CaptionedSet)
    assert ([str(image.path.name) for image in given.images], given.captions) == (
        ["2.jpg"], [["a dog.", "a pet"]]
    )  # fmt: skip
    write(tmp_path / file, "{")
    with pytest.raises(SetError, match="is no JSON"):
        read_known(name, tmp_path)


def test_docci_has_one_long_caption_an_image(tmp_path: Path, write: Write) -> None:
    rows = [
        {"split": split, "image_file": f"{split}.jpg", "description": f"of {split}"}
        for split in ("train", "test", "qual_dev")
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    write(tmp_path / "docci_descriptions.jsonlines", text)
    write(tmp_path / "images" / "test.jpg", 1)
    given = read_known("docci", tmp_path)
    assert isinstance(given, CaptionedSet)
    assert given.captions == [["of test"]]


def test_imagenet_is_in_folders_or_in_a_list(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "val" / "n01443537" / "ILSVRC2012_val_00000002.JPEG", 2)
    write(tmp_path / "val" / "n01440764" / "ILSVRC2012_val_00000293.JPEG", 1)
    given = read_known("imagenet", tmp_path)
    assert isinstance(given, LabelledSet)
    assert (given.labels, given.names[:2]) == ([0, 1], ["tench", "goldfish"])
    place = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    write(place / "ILSVRC2012_val_00000002.JPEG", 2)
    write(
        tmp_path / "kaggle" / "LOC_val_solution.csv",
        "ImageId,PredictionString\nILSVRC2012_val_00000002,n01443537 1 2 3 4 n01443537 5 6 7 8\n",
    )
    given = read_known("imagenet", tmp_path / "kaggle")
    assert isinstance(given, LabelledSet)
    assert given.labels == [1]
    write(place / "other.JPEG", 2)
    with pytest.raises(SetError, match=r"other\.JPEG has no class"):
        read_known("imagenet", tmp_path / "kaggle")


def test_a_complete_set_has_published_scores(tmp_path: Path, write: Write) -> None:
    rows = [
        {"filename": f"{index}.jpg", "split": "test", "sentences": [{"raw": "x"}]}
        for index in range(1000)
    ]
    write(tmp_path / "dataset_flickr30k.json", json.dumps({"images": rows}))
    for index in range(1000):
        write(tmp_path / "flickr30k-images" / f"{index}.jpg", 1)
    given = read_known("flickr30k", tmp_path)
    assert given.name == "flickr30k"
    found = {(one.model, one.metric): one.value for one in given.published}
    assert found["TIPSv2 L/14", "text to image R@1"] == 83.3
