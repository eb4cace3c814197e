"""Scores against answers that are computed by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from model.labelled import sets
from model.scores.pixels import Pixels, count_pixels
from model.segmentation import upsample_bilinear
from tests.tipserve_cli.conftest import Scripted
from tipserve_cli.evaluation import tasks
from tipserve_cli.evaluation.answers import Answers
from tipserve_cli.evaluation.tasks import Result, TaskOptions
from tipserve_client.requests import Request

Write = Callable[..., Path]


def class_names(request: Request) -> list[str]:
    return [one["name"] for one in request.fields["classes"]]


def values(result: Result) -> dict[str, float]:
    return {score.metric: score.interval().value for score in result.scores}


def segmentation(
    folder: Path, write: Write, masks: list[Any], names: str, *, reduce_zero_label: bool = False
) -> sets.SegmentationSet:
    for index, mask in enumerate(masks):
        write(folder / "images" / f"{index}.jpg", index)
        write(folder / "masks" / f"{index}.png", mask)
    file = write(folder / "names.txt", names)
    return sets.read_segmentation(
        folder / "images", folder / "masks", file, reduce_zero_label=reduce_zero_label
    )


def test_pixels_without_a_class_do_not_count(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    given = segmentation(tmp_path, write, [[[0, 0, 255, 1]], [[1, 1, 255, 255]]], "cat\ndog\n")
    scripted.masks = {0: [[1, 2, 1, 2]], 1: [[2, 2, 1, 1]]}  # labels of the model start at 1
    result = tasks.score_segmentation(given, answers, TaskOptions())
    # cat: 1 of 2 pixels; dog: 3 hits in a union of 4. The four pixels of 255 are in neither.
    assert values(result) == pytest.approx({"mIoU": (50 + 75) / 2, "pixel accuracy": 80.0})
    assert result.confusion_KK is not None
    assert result.confusion_KK.tolist() == [[1, 1], [0, 3]]
    assert class_names(scripted.requests[0]) == ["cat", "dog"]


def test_label_zero_is_no_class_where_it_is_said(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    given = segmentation(tmp_path, write, [[[0, 1, 2, 255]]], "cat\ndog\n", reduce_zero_label=True)
    scripted.masks = {0: [[1, 1, 1, 2]]}
    result = tasks.score_segmentation(given, answers, TaskOptions())
    assert values(result) == pytest.approx({"mIoU": (50 + 0) / 2, "pixel accuracy": 50.0})


def test_a_class_counts_if_it_is_shown_or_predicted(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    # No pixel is a cow and none is called so. No pixel is a bird, but one is called so: IoU 0.
    given = segmentation(tmp_path, write, [[[0, 0, 0, 1]]], "cat\ndog\nbird\ncow\n")
    scripted.masks = {0: [[1, 1, 3, 2]]}
    result = tasks.score_segmentation(given, answers, TaskOptions())
    assert values(result)["mIoU"] == pytest.approx((100 * 2 / 3 + 100 + 0) / 3)


@pytest.mark.parametrize("has_name", [True, False])
def test_pixels_below_the_threshold_are_background(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write, has_name: bool
) -> None:
    names = "cat\nbackground\n" if has_name else "cat\ndog\n"
    given = segmentation(tmp_path, write, [[[0, 0, 1, 1]]], names)
    scripted.masks = {0: [[1, 0, 0, 0]]}
    options = TaskOptions(background_threshold=0.1)
    result = tasks.score_segmentation(given, answers, options)
    # Without a class `background` those pixels are errors of their own class only.
    background = 100 * 2 / 3 if has_name else 0
    assert values(result)["mIoU"] == pytest.approx((50 + background) / 2)
    asked = scripted.requests[0]
    assert class_names(asked) == (["cat"] if has_name else ["cat", "dog"])
    assert asked.fields["background_threshold"] == 0.1


def test_masks_of_the_models_own_classes_are_matched_by_name(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    given = segmentation(tmp_path, write, [[[0, 0, 1, 1]], [[0, 1, 1, 1]]], "cat\ndog\n")
    # The model has a class that the set has not, and another order.
    scripted.own_classes = ["dog", "cow", "cat"]
    scripted.masks = {0: [[3, 2, 1, 1]], 1: [[3, 1, 1, 3]]}
    result = tasks.score_segmentation(given, answers, TaskOptions(classes="model"))
    assert result.task == "segmentation by own classes"
    # cat: 2 hits in a union of 4; dog: 4 in 5.
    assert values(result) == pytest.approx({"mIoU": (50 + 80) / 2, "pixel accuracy": 100 * 6 / 8})
    assert [class_names(one) for one in scripted.requests] == [["model"]] * 3
    asked = len(scripted.requests)
    tasks.score_segmentation(given, answers, TaskOptions(classes="model"))
    assert len(scripted.requests) == asked
    scripted.own_classes = ["dog", "cow"]
    other = replace(given, names=["dog", "bird"])
    with pytest.raises(sets.SetError, match="the model has no class 'bird'; it has dog, cow, cat"):
        tasks.score_segmentation(other, answers, TaskOptions(classes="model"))


def masked_split(folder: Path, write: Write, train: list[Any], val: list[Any]) -> Path:
    """Images 0, 1, ... of `train`, and then of `val`, with masks."""
    parts = [*(("train", mask) for mask in train), *(("val", mask) for mask in val)]
    for index, (part, mask) in enumerate(parts):
        write(folder / part / "images" / f"{index}.jpg", index)
        write(folder / part / "masks" / f"{index}.png", mask)
    return write(folder / "names.txt", "cat\ndog\nbird\n")


@pytest.mark.parametrize("reduce_zero_label", [False, True])
def test_patches_are_classified_by_what_train_shows(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write, reduce_zero_label: bool
) -> None:
    none, cat, dog, bird = (0, 1, 2, 3) if reduce_zero_label else (255, 0, 1, 2)
    # In train, patch (1, 0) is mostly a cat, (0, 1) a dog; (-1, 0) has no class, and bird no patch.
    train = [[[cat, cat, cat, dog, dog, dog, none, none, none]]] * 6
    names = masked_split(
        tmp_path, write, train, [[[cat, cat, dog, dog]], [[dog, none, bird, none]]]
    )
    scripted.images = {index: [[(1, 0), (0, 1), (-1, 0)]] for index in range(6)}
    scripted.images |= {6: [[(1, 0), (0, 1)]], 7: [[(1, 0), (1, 0)]]}
    given = sets.read_masked_split(tmp_path, names, reduce_zero_label=reduce_zero_label)
    assert len(given.images) == 8
    result = tasks.score_linear_segmentation(given, answers, TaskOptions(features="values"))
    # Image 6 is right in all pixels, scaled between two patches; image 7 is called a cat.
    # cat: 2 hits in a union of 4; dog: 2 in 3; bird: none in 1.
    assert values(result) == pytest.approx(
        {"mIoU": (50 + 100 * 2 / 3 + 0) / 3, "pixel accuracy": 100 * 4 / 6}
    )
    assert (result.task, result.split) == ("linear segmentation", tmp_path.name)
    assert {one.fields["outputs"][0] for one in scripted.requests} == {"values"}
    assert {one.fields["fit"] for one in scripted.requests} == {"aspect"}


def test_patches_of_many_images_are_a_bounded_sample(
    answers: Answers,
    scripted: Scripted,
    tmp_path: Path,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cat, dog = 0, 1
    train = [[[cat] * 6 + [dog] * 6]] * 10
    names = masked_split(tmp_path, write, train, [[[cat, dog]]])
    scripted.images = {index: [[(1, 0)] * 6 + [(0, 1)] * 6] for index in range(10)}
    scripted.images[10] = [[(1, 0), (0, 1)]]
    given = sets.read_masked_split(tmp_path, names)
    request = TaskOptions().about_patches()
    whole = tasks._train_patches(given, answers, request)
    assert len(whole[0]) == 10 * 12
    monkeypatch.setattr(tasks, "_PATCH_BYTES", 10 * 4 * 8)  # four of two numbers an image
    features, labels, _, images = tasks._train_patches(given, answers, request)
    assert np.bincount(images).tolist() == [4] * 10
    assert np.array_equal(features, np.eye(2)[labels])
    assert set(labels) == {cat, dog}
    again = tasks._train_patches(given, answers, request)
    assert np.array_equal(again[0], features)
    result = tasks.score_linear_segmentation(given, answers, TaskOptions())
    assert values(result)["mIoU"] == pytest.approx(100)


def test_a_linear_segmentation_needs_two_classes(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    names = masked_split(tmp_path, write, [[[0, 255]]], [[[0, 1]]])
    scripted.images = {0: [[(1, 0), (0, 1)]]}
    given = sets.read_masked_split(tmp_path, names)
    with pytest.raises(sets.SetError, match="train/ need pixels of at least two classes"):
        tasks.score_linear_segmentation(given, answers, TaskOptions())


def test_the_highest_of_scaled_scores_wins_at_each_pixel() -> None:
    scores_khw = np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float32)
    wanted_HW = upsample_bilinear(scores_khw, (150, 61)).argmax(0)
    assert np.array_equal(tasks._best_class(scores_khw, (150, 61)), wanted_HW)


def test_the_mean_over_classes_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth_SP = rng.integers(-1, 6, (4, 500))
    called_SP = rng.integers(0, 7, (4, 500))  # class 6 is only predicted, and 7 never occurs
    tables = [count_pixels(t, c, 8) for t, c in zip(truth_SP, called_SP, strict=True)]
    pixels = Pixels.of([counts for _, counts in tables])
    counted = truth_SP >= 0
    expected = jaccard_score(truth_SP[counted], called_SP[counted], average="macro")
    assert pixels.miou(np.ones((1, 4)))[0] == pytest.approx(100 * expected, abs=1e-9)
    table_KK = confusion_matrix(truth_SP[counted], called_SP[counted], labels=range(8))
    assert np.array_equal(sum(table for table, _ in tables), table_KK)


def test_every_caption_of_an_image_is_right_for_it(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    for index, captions in enumerate(("north\neast\n", "south\n", "west\nnorth-east\n")):
        write(tmp_path / f"{index}.jpg", index)
        write(tmp_path / f"{index}.txt", captions)
    angles = {"north": 90, "east": 0, "south": -90, "west": 180, "north-east": 45}
    turned = {name: np.deg2rad(angle) for name, angle in angles.items()}
    scripted.texts = {name: (np.cos(a), np.sin(a)) for name, a in turned.items()}
    scripted.images = {
        index: (np.cos(a), np.sin(a)) for index, a in enumerate(np.deg2rad([10, -60, 150]))
    }
    result = tasks.score_retrieval(
        sets.read_captioned(tmp_path), answers, TaskOptions(embedding="cls2")
    )
    # Image 0 at 10 degrees finds east; 1 at -60 finds south; 2 at 150 finds west.
    # East and south and west find their images; north is nearer to 2, north-east to 0.
    assert values(result) == pytest.approx(
        {
            "image to text R@1": 100.0,
            "image to text R@5": 100.0,
            "image to text R@10": 100.0,
            "text to image R@1": 60.0,
            "text to image R@5": 100.0,
            "text to image R@10": 100.0,
        }
    )
    chance = {score.metric: score.chance for score in result.scores}
    assert chance["image to text R@1"] == pytest.approx(100 * (2 / 5 + 1 / 5 + 2 / 5) / 3)
    assert scripted.requests[0].fields["outputs"] == ["cls2"]
    assert scripted.requests[-1].fields["templates"] == "none"


def labelled(folder: Path, write: Write, rows: dict[str, list[int]]) -> Path:
    for name, images in rows.items():
        for image in images:
            write(folder / name / f"{image}.jpg", image)
    return folder


def test_classes_are_ranked_by_cosine(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    folder = labelled(tmp_path / "set", write, {"a": [1, 2], "b_c": [3], "d": [4]})
    scripted.images = {1: (1, 0), 2: (0, 5), 3: (0, 1), 4: (1, 1)}
    scripted.texts = {"a": (1, 0), "b c": (0, 1), "d": (-1, 0)}
    result = tasks.score_classification(
        sets.read_classes(folder), answers, TaskOptions(templates=("one {}.", "many {}s."))
    )
    assert values(result) == {"top-1": 50.0, "top-5": 100.0}
    assert scripted.requests[-1].fields["templates"] == ["one {}.", "many {}s."]
    assert result.confusion_KK is not None
    assert result.confusion_KK.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_neighbours_vote_by_their_cosine(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    labelled(tmp_path / "train", write, {"a": [1], "b": [2, 3], "c": [9]})
    labelled(tmp_path / "val", write, {"a": [4], "b": [5], "c": [6]})
    # Two neighbours at cosine 0 weigh less than one at 1: exp(1 / 0.07) to 2 exp(0).
    scripted.images = {1: (1, 0), 2: (0, 1), 3: (0, 1), 9: (-1, 0)}
    scripted.images |= {4: (1, 0), 5: (0.1, 1), 6: (-1, 0.5)}
    result = tasks.score_knn(sets.read_split(tmp_path), answers, TaskOptions())
    assert values(result) == {"top-1": 100.0, "top-5": 100.0}


def test_a_linear_classifier_is_fitted_to_train(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    labelled(tmp_path / "train", write, {"a": [1, 2, 3], "b": [4, 5, 6]})
    labelled(tmp_path / "val", write, {"a": [7, 8], "b": [9, 10]})
    scripted.images = {image: (1 if image < 4 else -1, image / 10) for image in range(1, 7)}
    scripted.images |= {7: (1, 0), 8: (-1, 0), 9: (-1, 1), 10: (-1, 0)}
    result = tasks.score_linear(sets.read_split(tmp_path), answers, TaskOptions())
    assert values(result)["top-1"] == 75.0
    labelled(tmp_path / "train", write, {"c": [1]})
    labelled(tmp_path / "val", write, {"c": [1]})
    with pytest.raises(sets.SetError, match="needs two train/ images of each class"):
        tasks.score_linear(sets.read_split(tmp_path), answers, TaskOptions())


def test_an_image_finds_the_others_of_its_thing(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    folder = labelled(tmp_path / "set", write, {"a": [1, 2], "b": [3, 4], "c": [5]})
    scripted.images = {1: (1, 0), 2: (0.9, 0.1), 3: (0, 1), 4: (-1, 0), 5: (0, 1)}
    result = tasks.score_instances(sets.read_instances(folder), answers, TaskOptions())
    # 1 and 2 find each other. 3 finds 5 first, which only it can be confused with; 4 finds 3.
    # 4 ties with 5, and a tie is an error.
    assert values(result)["R@1"] == 50.0
    assert values(result)["R@5"] == 100.0
    assert result.examples == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    chance = {score.metric: score.chance for score in result.scores}
    assert chance["R@1"] == pytest.approx(100 / 4)


def test_queries_are_searched_in_the_index(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    labelled(tmp_path / "set" / "index", write, {"a": [1], "b": [2], "other": [3]})
    with pytest.raises(sets.SetError, match="has index/ only; it needs query/ and index/"):
        sets.read_instances(tmp_path / "set")
    labelled(tmp_path / "set" / "query", write, {"b": [4, 5], "other": [6]})
    scripted.images = {1: (1, 0), 2: (0, 1), 3: (-1, 0), 4: (0.1, 1), 5: (1, 0.2), 6: (-1, 0.1)}
    given = sets.read_instances(tmp_path / "set")
    assert len(given.images) == 6
    result = tasks.score_instances(given, answers, TaskOptions())
    assert values(result)["R@1"] == pytest.approx(200 / 3)
    labelled(tmp_path / "set" / "query", write, {"new": [4]})
    with pytest.raises(sets.SetError, match="'new' of query/ is not in index/"):
        sets.read_instances(tmp_path / "set")
    alone = labelled(tmp_path / "alone", write, {"a": [1], "b": [2]})
    with pytest.raises(sets.SetError, match="no thing has two images"):
        sets.read_instances(alone)


def with_maps(folder: Path, write: Write, maps: list[Any]) -> tuple[Path, Path]:
    """Images with `.npy` maps."""
    for index, one in enumerate(maps):
        write(folder / "images" / f"{index}.jpg", index)
        (folder / "maps").mkdir(exist_ok=True)
        np.save(folder / "maps" / f"{index}.npy", np.array(one, np.float32))
    return folder / "images", folder / "maps"


def test_depth_is_averaged_in_each_image_and_then_over_images(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    none = [[0, np.nan, np.inf, -1]]
    given = sets.read_depth(
        *with_maps(tmp_path, write, [[[2, 4, 0, np.nan]], [[1, np.inf, 0, 0]], none])
    )
    # Image 0: errors 1 and 1 of 2 and 4; 3 is not within 1.25 of 2, and 5 is not within it of 4.
    # Image 1: error 0.2 of 1, within a factor of 1.25. Image 2 has no depth and does not count.
    scripted.maps = {0: [[3, 5, 9, 9]], 1: [[1.2, 9, 9, 9]], 2: [[1, 1, 1, 1]]}
    result = tasks.score_depth(given, answers, TaskOptions(resolution=28))
    assert values(result) == pytest.approx(
        {
            "RMSE (m)": (1 + 0.2) / 2,
            "AbsRel (%)": 100 * ((1 / 2 + 1 / 4) / 2 + 0.2) / 2,
            "delta1": 50.0,
        }
    )
    asked = scripted.requests[0]
    assert (asked.method, asked.fields["resolution"]) == ("estimate_depth", 28)
    empty = sets.read_depth(*with_maps(tmp_path / "empty", write, [none]))
    scripted.maps[0] = [[1, 1, 1, 1]]
    with pytest.raises(sets.SetError, match="no image has a depth that counts"):
        tasks.score_depth(
            empty, replace(answers, model=replace(answers.model, precision="y")), TaskOptions()
        )
    other = sets.read_depth(*with_maps(tmp_path / "other", write, [[[1, 1, 1]]]))
    with pytest.raises(sets.SetError, match=r"0\.npy has \(1, 3\), its image \(1, 4\) rows and"):
        tasks.score_depth(other, answers, TaskOptions())


def test_estimates_are_moved_into_the_range_that_counts(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    given = replace(
        sets.read_depth(*with_maps(tmp_path, write, [[[0.5, 9, 10, 12]]])), range_m=(1.0, 10.0)
    )
    scripted.maps = {0: [[7, 12, 7, 7]]}
    result = tasks.score_depth(given, answers, TaskOptions())
    assert values(result)["RMSE (m)"] == pytest.approx(1.0)


def turned(*degrees: float) -> list[tuple[float, float, float]]:
    """Unit vectors at these angles to (0, 0, 1)."""
    return [(float(np.sin(a)), 0.0, float(np.cos(a))) for a in np.deg2rad(degrees)]


def test_angles_are_averaged_over_all_pixels(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    ahead, none = (0, 0, 1), (0, 0, 0)
    given = sets.read_normals(
        *with_maps(tmp_path, write, [[[ahead, ahead, ahead]], [[(0, 0, 1.2), none, [np.nan] * 3]]])
    )
    scripted.maps = {0: [turned(10, 20, 180)], 1: [turned(25, 0, 0)]}
    result = tasks.score_normals(given, answers, TaskOptions())
    squares = 10**2 + 20**2 + 180**2 + 25**2
    assert values(result) == pytest.approx(
        {
            "mean angle (degrees)": (10 + 20 + 180 + 25) / 4,
            "RMSE (degrees)": (squares / 4) ** 0.5,
            "under 11.25 degrees": 25.0,
            "under 22.5 degrees": 50.0,
            "under 30 degrees": 75.0,
        }
    )
    assert scripted.requests[0].method == "estimate_normals"
    by_image = tasks.score_normals(replace(given, by_image=True), answers, TaskOptions())
    assert values(by_image) == pytest.approx(
        {
            "mean angle (degrees)": (210 / 3 + 25) / 2,
            "RMSE (degrees)": (((squares - 25**2) / 3) ** 0.5 + 25) / 2,
            "under 11.25 degrees": 100 / 6,
            "under 22.5 degrees": 200 / 6,
            "under 30 degrees": 500 / 6,
        }
    )
