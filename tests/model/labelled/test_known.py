"""Known sets in small folders of their authors' layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from model.class_names import NAMES
from model.labelled.known import KNOWN, READERS, TRAIN_READERS, UNED, UNED_INDEXED, read_known
from model.labelled.sets import (
    CaptionedSet,
    DepthSet,
    InstanceSet,
    LabelledSet,
    SegmentationSet,
    SetError,
    read_names,
)
from tests.tipserve_cli.conftest import Scripted
from tipserve_cli.evaluation.answers import Answers
from tipserve_cli.evaluation.options import EvaluateOptions, KnownName
from tipserve_cli.evaluation.tasks import score_instances

Write = Callable[..., Path]


def test_every_set_is_a_choice_and_names_its_parts() -> None:
    assert set(get_args(KnownName)) == set(KNOWN) == set(READERS)
    assert all(known.source.startswith("http") for known in KNOWN.values())
    assert {name for name, known in KNOWN.items() if known.train_needs} == set(TRAIN_READERS)
    unscored = {name for name, known in KNOWN.items() if not known.published}
    assert unscored == {f"uned-{name}" for name in UNED}
    parts = [KNOWN[f"uned-{name}"] for name in UNED]
    assert KNOWN["uned"].num_images == sum(part.num_images for part in parts)
    assert set(KNOWN["uned"].needs) == {need for part in parts for need in part.needs}


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
    assert given.read(0).tolist() == [[-1, 0, 149]]


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
        assert given.read(0).tolist() == [wanted]
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
    num_images = KNOWN[name].num_images

    def row(image: str, split: str, *captions: str) -> dict[str, object]:
        sentences = [{"raw": caption} for caption in captions]
        return {"filename": image, "split": split, "sentences": sentences, **place}

    def read(rows: list[Any]) -> CaptionedSet:
        write(tmp_path / file, json.dumps({"images": rows}))
        given = read_known(name, tmp_path)
        assert isinstance(given, CaptionedSet)
        return given

    write(tmp_path / folder / "2.jpg", 2)
    given = read([row("1.jpg", "train", "x"), row("2.jpg", "test", "a dog. ", "a pet")])
    assert [image.path.name for image in given.images] == ["2.jpg"]
    assert given.captions == [["a dog.", "a pet"]]
    assert (given.name, given.published) == (f"{name}, 1 of {num_images} images", ())
    whole = read([row("2.jpg", "test", "x")] * num_images)
    assert (whole.name, whole.published) == (name, KNOWN[name].published)
    write(tmp_path / file, "{")
    with pytest.raises(SetError, match="is no JSON"):
        read_known(name, tmp_path)


def test_docci_has_one_long_caption_an_image(tmp_path: Path, write: Write) -> None:
    rows = [
        {"split": split, "image_file": f"{split}.jpg", "description": f"of {split}"}
        for split in ("train", "test", "qual_dev")
    ]
    write(tmp_path / "docci_descriptions.jsonlines", "\n".join(map(json.dumps, rows)))
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


def test_nyuv2_counts_its_crop_between_a_millimetre_and_ten_metres(
    tmp_path: Path, write: Write
) -> None:
    with pytest.raises(SetError, match=r"has no official_splits.* nyuv2 needs .*nyu_depth_v2"):
        read_known("nyuv2", tmp_path)
    scene = tmp_path / "official_splits" / "test" / "bathroom"
    write(scene / "rgb_00045.jpg", 1)
    with pytest.raises(SetError, match=r"1 of 1 depth maps are missing, .*sync_depth_00045"):
        read_known("nyuv2", tmp_path)
    depth_HW = np.full((480, 640), 2000, np.uint16)
    depth_HW[100, 100:104] = 0, 1, 9999, 10_000
    Image.fromarray(depth_HW).save(scene / "sync_depth_00045.png")
    given = read_known("nyuv2", tmp_path)
    assert isinstance(given, DepthSet)
    counted_HW = np.isfinite(given.read(0))
    rows, columns = np.flatnonzero(counted_HW.any(1)), np.flatnonzero(counted_HW.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (45, 470, 41, 600)
    np.testing.assert_equal(given.read(0)[100, 100:105], [np.nan, np.nan, 9.999, np.nan, 2.0])
    Image.fromarray(depth_HW[:-1]).save(scene / "sync_depth_00045.png")
    with pytest.raises(SetError, match=r"has \(479, 640\) rows and columns, not \(480, 640\)"):
        given.read(0)


def uned(folder: Path, write: Write, lists: dict[str, list[tuple[str, Any]]]) -> None:
    """Files of UnED: images by path and class; the content of each is its place."""
    for name, rows in lists.items():
        listed = [{"path": f"{name}/{path}", "class_id": label} for path, label in rows]
        write(folder / "info_files" / f"{name}.json", json.dumps(listed))
        for path, _ in rows:
            place = folder / "images" / name / path
            write(place, int(place.stem.rpartition("-")[2]))


def test_each_set_of_uned_has_its_queries_and_its_index(tmp_path: Path, write: Write) -> None:
    with pytest.raises(SetError, match=r"has no images\. uned-met needs .*index\.json.*univ_emb"):
        read_known("uned-met", tmp_path)
    rows = [(f"\u00e9\u5c0f/{number}.jpg", label) for number, label in ((1, 7), (2, 8), (3, 7))]
    uned(tmp_path, write, {"rp2k/test": rows})
    folder = tmp_path / "images" / "rp2k" / "test"
    (folder / "\u00e9\u5c0f").rename(folder / "#U00e9#U5c0f")  # as `unzip` may spell it
    given = read_known("uned-rp2k", tmp_path)
    assert isinstance(given, InstanceSet)
    # 2 is of no other image.
    assert [(query.place, query.things) for query in given.queries] == [(0, (0,)), (2, (0,))]
    assert list(given.things) == [0, 1, 0]
    assert [image.read() for image in given.images] == [b"\1", b"\2", b"\3"]
    rows = [("4.jpg", 5), ("5.jpg", 6)]
    uned(tmp_path, write, {"met/index": rows, "met/test": [("6.jpg", [6, 5]), ("7.jpg", [5])]})
    given = read_known("uned-met", tmp_path)
    assert isinstance(given, InstanceSet)
    assert [(query.place, query.things) for query in given.queries] == [(2, (1, 0)), (3, (0,))]
    assert [image.path.name for image in given.images] == ["4.jpg", "5.jpg", "6.jpg", "7.jpg"]
    write(tmp_path / "info_files" / "met" / "test.json", '[{"path": "x"}]')
    with pytest.raises(SetError, match="is no list of images as UnED has it"):
        read_known("uned-met", tmp_path)


def test_uned_searches_all_indices_and_averages_its_sets(
    tmp_path: Path, write: Write, answers: Answers, scripted: Scripted
) -> None:
    single = [(name, f"{name}/test") for name in UNED if name not in UNED_INDEXED]
    lists: dict[str, list[tuple[str, Any]]] = {}
    for place, (_, name) in enumerate(single):
        lists[name] = [(f"{2 * place}.jpg", 0), (f"{2 * place + 1}.jpg", 0)]
    for place, name in enumerate(sorted(UNED_INDEXED), start=20):
        lists[f"{name}/index"] = [(f"{place}.jpg", 0)]
        lists[f"{name}/test"] = [(f"{place + 10}-{place + 10}.jpg", [0])]
    uned(tmp_path, write, lists)
    # Each set has an axis of its own, and the query of `met` looks like `gldv2`.
    tests = [name for name in lists if name.endswith("/test")]
    axis_of = dict(zip(tests, np.eye(8), strict=True))
    for name, rows in lists.items():
        for path, _ in rows:
            own = axis_of[name.replace("/index", "/test")]
            number = int(Path(path).stem.rpartition("-")[2])
            scripted.images[number] = axis_of["gldv2/test"] if name == "met/test" else own
    given = read_known("uned", tmp_path)
    assert isinstance(given, InstanceSet)
    found = {
        score.metric: score for score in score_instances(given, answers, EvaluateOptions()).scores
    }
    assert len(given.queries) == 5 * 2 + 3
    # Seven sets are found, one is not, whatever their number of queries.
    assert found["R@1"].interval().value == pytest.approx(100 * 7 / 8)
    assert found["R@1"].chance is None
