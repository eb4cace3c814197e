"""Scores against answers that are computed by hand."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from model.labelled import sets
from model.scores.pixels import Pixels, count_pixels
from tests.tipserve_cli.conftest import Scripted
from tipserve_cli.evaluation import tasks
from tipserve_cli.evaluation.answers import Answers
from tipserve_cli.evaluation.masks import score_segmentation
from tipserve_cli.evaluation.options import EvaluateOptions
from tipserve_cli.evaluation.report import entries_of
from tipserve_cli.evaluation.results import Result, Score, Sums
from tipserve_client.requests import Request

Row = dict[str, list[int]]
THRESHOLD = {"background_threshold": 0.1, "fit": "squash"}


def class_names(request: Request) -> list[str]:
    return [one["name"] for one in request.fields["classes"]]


def values(result: Result) -> dict[str, float]:
    return {score.metric: score.interval().value for score in result.scores}


def chance(result: Result, metric: str) -> float | None:
    return next(score.chance for score in result.scores if score.metric == metric)


def turned(*degrees: float) -> list[tuple[float, float, float]]:
    """Unit vectors at these angles to (0, 0, 1)."""
    return [(float(np.sin(a)), 0.0, float(np.cos(a))) for a in np.deg2rad(degrees)]


@dataclass
class World:
    """A folder of sets, and a model whose answers a test sets."""

    answers: Answers
    model: Scripted
    folder: Path
    write: Callable[..., Path]

    def score(self, task: Callable[..., Result], given: Any, **options: Any) -> Result:
        return task(given, self.answers, EvaluateOptions(**options))

    def masks(
        self, masks: list[Any], names: str, *, reduce_zero_label: bool = False
    ) -> sets.SegmentationSet:
        for index, mask in enumerate(masks):
            self.write(self.folder / "images" / f"{index}.jpg", index)
            self.write(self.folder / "masks" / f"{index}.png", mask)
        file = self.write(self.folder / "names.txt", names)
        folders = self.folder / "images", self.folder / "masks"
        return sets.read_segmentation(*folders, file, reduce_zero_label=reduce_zero_label)

    def labelled(self, place: str, rows: Row) -> Path:
        for name, images in rows.items():
            for image in images:
                self.write(self.folder / place / name / f"{image}.jpg", image)
        return self.folder / place

    def maps(self, maps: list[Any], place: str = "maps") -> tuple[Path, Path]:
        """Images with `.npy` maps."""
        (self.folder / place).mkdir()
        for index, one in enumerate(maps):
            self.write(self.folder / f"of_{place}" / f"{index}.jpg", index)
            np.save(self.folder / place / f"{index}.npy", np.array(one, np.float32))
        return self.folder / f"of_{place}", self.folder / place


@pytest.fixture
def world(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Callable[..., Path]
) -> World:
    return World(answers, scripted, tmp_path, write)


@pytest.mark.parametrize(
    ("names", "truth", "called", "miou", "options"),
    [
        # Pixels of 255 do not count. cat: 1 of 2 pixels; dog: 3 hits in a union of 4.
        ("cat dog", [[0, 0, 255, 1], [1, 1, 255, 255]], [[1, 2, 1, 2], [2, 2, 1, 1]], 62.5, {}),
        # Label 0 is no class where that is said.
        ("cat dog", [[0, 1, 2, 255]], [[1, 1, 1, 2]], 25.0, {"reduce_zero_label": True}),
        # No pixel is a cow and none is called so. No pixel is a bird, but one is called so.
        ("cat dog bird cow", [[0, 0, 0, 1]], [[1, 1, 3, 2]], 100 * (2 / 3 + 1) / 3, {}),
        # Pixels below the threshold are the class `background`, or errors of their own class only.
        ("cat background", [[0, 0, 1, 1]], [[1, 0, 0, 0]], (50 + 200 / 3) / 2, THRESHOLD),
        ("cat dog", [[0, 0, 1, 1]], [[1, 0, 0, 0]], 25.0, THRESHOLD),
    ],
)
def test_masks_are_compared_pixel_by_pixel(
    world: World,
    names: str,
    truth: list[Any],
    called: list[Any],
    miou: float,
    options: dict[str, Any],
) -> None:
    given = world.masks(
        [[one] for one in truth],
        names.replace(" ", "\n"),
        reduce_zero_label=options.get("reduce_zero_label", False),
    )
    world.model.masks = {index: [one] for index, one in enumerate(called)}  # labels start at 1
    result = world.score(score_segmentation, given, **options)
    assert values(result)["mIoU"] == pytest.approx(miou)
    if len(truth) == 2:
        assert values(result)["pixel accuracy"] == pytest.approx(80.0)
        assert result.confusion_KK is not None
        assert result.confusion_KK.tolist() == [[1, 1], [0, 3]]
    asked = world.model.requests[0]
    assert class_names(asked) == names.replace(" background", "").split()
    assert {name: asked.fields[name] for name in options if name in THRESHOLD} == (
        options if options is THRESHOLD else {}
    )


def test_masks_of_the_models_own_classes_are_matched_by_name(world: World) -> None:
    given = world.masks([[[0, 0, 1, 1]], [[0, 1, 1, 1]]], "cat\ndog\n")
    # The model has a class that the set has not, and another order.
    world.model.own_classes = ["dog", "cow", "cat"]
    world.model.masks = {0: [[3, 2, 1, 1]], 1: [[3, 1, 1, 3]]}
    result = world.score(score_segmentation, given, classes="model")
    assert result.task == "segmentation by own classes"
    # cat: 2 hits in a union of 4; dog: 4 in 5.
    assert values(result) == pytest.approx({"mIoU": (50 + 80) / 2, "pixel accuracy": 100 * 6 / 8})
    assert {*map(tuple, map(class_names, world.model.requests))} == {("model",)}
    other = replace(given, names=["dog", "bird"])
    with pytest.raises(sets.SetError, match="the model has no class 'bird'; it has dog, cow, cat"):
        world.score(score_segmentation, other, classes="model")


def test_objects_are_scored_with_background_at_a_threshold_of_the_other_images(
    world: World,
) -> None:
    # Label 0 is background. Of each image all four pixels are called a cat; two are one.
    names = "".join(f"{name}\n" for name in ("cat", *"abcdef"))
    given = world.masks([[[0, 1, 1, 0]]] * 3, names, reduce_zero_label=True)
    world.model.named_masks = {index: {"cat": [[1, 1, 1, 1]]} for index in range(3)}
    # A threshold between 0.2 and 0.3 is best for images 0 and 1, and for 2 one between 0.5 and 0.6.
    world.model.cosines = {0: [[0.2, 0.3, 0.3, 0.1]], 1: [[0.2, 0.3, 0.3, 0.1]]}
    world.model.cosines[2] = [[0.5, 0.6, 0.6, 0.5]]
    found = values(world.score(score_segmentation, given))
    # Image 2 keeps all its pixels at the threshold of the others, and the others theirs.
    assert found["IoU with background"] == pytest.approx((100 + 100 + 50) / 3)
    assert found["absent names (%)"] == 0
    asked = {frozenset(class_names(one)) for one in world.model.requests}
    assert asked == {frozenset(given.names), frozenset({"cat"})}

    world.model.named_masks = {
        index: {"cat": [[0, 1, 0, 0]], "a": [[1, 0, 0, 0]]} for index in range(3)
    }
    found = values(world.score(score_segmentation, given, background="auto"))
    assert found["IoU with background"] == pytest.approx(50)
    assert found["absent names (%)"] == 25
    assert found["boundary F"] == 100


def test_names_that_an_image_shows_compete_with_each_other_only(world: World) -> None:
    given = world.masks([[[0, 0, 1, 1]], [[2, 2, 2, 2]]], "cat\ndog\nbird\n")
    world.model.masks = {0: [[1, 1, 1, 2]], 1: [[1, 1, 3, 3]]}
    found = values(world.score(score_segmentation, given))
    # cat: 2 in 3; dog: 1 in 2. The bird is the only name of its image, in the first two pixels.
    assert found["IoU, names given"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert "IoU with background" not in found  # no pixel of the set is background
    assert ("bird",) in {tuple(class_names(one)) for one in world.model.requests}


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


def test_every_caption_of_an_image_is_right_for_it(world: World) -> None:
    for index, captions in enumerate(("north\neast\n", "south\n", "west\nnorth-east\n")):
        world.write(world.folder / f"{index}.jpg", index)
        world.write(world.folder / f"{index}.txt", captions)
    degrees = {"north": 90, "east": 0, "south": -90, "west": 180, "north-east": 45}
    angles = {name: np.deg2rad(angle) for name, angle in degrees.items()}
    world.model.texts = {name: (np.cos(a), np.sin(a)) for name, a in angles.items()}
    of_images = enumerate(np.deg2rad([10, -60, 150]))
    world.model.images = {index: (np.cos(a), np.sin(a)) for index, a in of_images}
    given = sets.read_captioned(world.folder)
    result = world.score(tasks.score_retrieval, given, embedding="cls2")
    # Image 0 at 10 degrees finds east; 1 at -60 finds south; 2 at 150 finds west.
    # East and south and west find their images; north is nearer to 2, north-east to 0.
    # Among five texts and three images the depths 5 and 10 tell nothing.
    assert values(result) == pytest.approx({"image to text R@1": 100.0, "text to image R@1": 60.0})
    wanted_chance = 100 * (2 / 5 + 1 / 5 + 2 / 5) / 3
    assert chance(result, "image to text R@1") == pytest.approx(wanted_chance)
    assert world.model.requests[0].fields["outputs"] == ["cls2"]
    assert world.model.requests[-1].fields["templates"] == "none"


def test_classes_are_ranked_by_cosine(world: World) -> None:
    folder = world.labelled("set", {"a": [1, 2], "b_c": [3], "d": [4]})
    world.model.images = {1: (1, 0), 2: (0, 5), 3: (0, 1), 4: (1, 1)}
    world.model.texts = {"a": (1, 0), "b c": (0, 1), "d": (-1, 0)}
    templates = world.write(world.folder / "templates.txt", "one {}.\nmany {}s.\n")
    given = sets.read_classes(folder)
    result = world.score(tasks.score_classification, given, templates=str(templates))
    assert values(result) == {"top-1": 50.0}
    assert world.model.requests[-1].fields["templates"] == ["one {}.", "many {}s."]
    assert result.confusion_KK is not None
    assert result.confusion_KK.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_a_depth_is_scored_below_the_number_of_classes(world: World) -> None:
    folder = world.labelled("set", {name: [number] for number, name in enumerate("abcdef")})
    angles = {name: np.deg2rad(10 * number) for number, name in enumerate("abcdef")}
    world.model.texts = {name: (np.cos(a), np.sin(a)) for name, a in angles.items()}
    world.model.images = dict.fromkeys(range(6), (1, 0))  # nearest to a, farthest from f
    templates = world.write(world.folder / "templates.txt", "{}\n")
    given = sets.read_classes(folder)
    result = world.score(tasks.score_classification, given, templates=str(templates))
    assert values(result) == pytest.approx({"top-1": 100 / 6, "top-5": 500 / 6})


@pytest.mark.parametrize(
    ("right", "has_interval"),
    [([1] * 4, False), ([0, 1] * 4, False), ([1] * 50, False), ([0, 1] * 5, True)],
)
def test_few_or_equal_examples_have_no_interval(right: list[int], has_interval: bool) -> None:
    counts = Sums(np.array(right, float), np.ones(len(right)))
    result = Result(
        task="x", split="y", options={}, examples=[], scores=[Score("top-1", counts, Sums.share)]
    )
    (entry,) = entries_of([result], None)
    assert entry.value == 100 * sum(right) / len(right)
    assert (entry.low is not None) is has_interval


def test_neighbours_vote_by_their_cosine(world: World) -> None:
    world.labelled("train", {"a": [1], "b": [2, 3], "c": [9]})
    world.labelled("val", {"a": [4], "b": [5], "c": [6]})
    # Two neighbours at cosine 0 weigh less than one at 1: exp(1 / 0.07) to 2 exp(0).
    world.model.images = {1: (1, 0), 2: (0, 1), 3: (0, 1), 9: (-1, 0)}
    world.model.images |= {4: (1, 0), 5: (0.1, 1), 6: (-1, 0.5)}
    found = values(world.score(tasks.score_knn, sets.read_split(world.folder)))
    assert found == {"top-1": 100.0}


def test_a_linear_classifier_is_fitted_to_train(world: World) -> None:
    world.labelled("train", {"a": [1, 2, 3], "b": [4, 5, 6]})
    world.labelled("val", {"a": [7, 8], "b": [9, 10]})
    world.model.images = {image: (1 if image < 4 else -1, image / 10) for image in range(1, 7)}
    world.model.images |= {7: (1, 0), 8: (-1, 0), 9: (-1, 1), 10: (-1, 0)}
    assert values(world.score(tasks.score_linear, sets.read_split(world.folder)))["top-1"] == 75.0
    for part in ("train", "val"):
        world.labelled(part, {"c": [1]})
    with pytest.raises(sets.SetError, match="needs two train/ images of each class"):
        world.score(tasks.score_linear, sets.read_split(world.folder))


def test_an_image_finds_the_others_of_its_thing(world: World) -> None:
    folder = world.labelled("set", {"a": [1, 2], "b": [3, 4], "c": [5]})
    world.model.images = {1: (1, 0), 2: (0.9, 0.1), 3: (0, 1), 4: (-1, 0), 5: (0, 1)}
    result = world.score(tasks.score_instances, sets.read_instances(folder))
    # 1 and 2 find each other. 3 finds 5 first, which only it can be confused with; 4 finds 3.
    # 4 ties with 5, and a tie is an error.
    assert values(result) == {"R@1": 50.0}
    assert result.examples == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert chance(result, "R@1") == pytest.approx(100 / 4)


def test_queries_are_searched_in_the_index(world: World) -> None:
    folder = world.labelled("set", {"index/a": [1], "index/b": [2], "index/other": [3]})
    with pytest.raises(sets.SetError, match="has index/ only; it needs query/ and index/"):
        sets.read_instances(folder)
    world.labelled("set", {"query/b": [4, 5], "query/other": [6]})
    world.model.images = {1: (1, 0), 2: (0, 1), 3: (-1, 0)}
    world.model.images |= {4: (0.1, 1), 5: (1, 0.2), 6: (-1, 0.1)}
    found = values(world.score(tasks.score_instances, sets.read_instances(folder)))
    assert found["R@1"] == pytest.approx(200 / 3)
    world.labelled("set", {"query/new": [4]})
    with pytest.raises(sets.SetError, match="'new' of query/ is not in index/"):
        sets.read_instances(folder)
    with pytest.raises(sets.SetError, match="no thing has two images"):
        sets.read_instances(world.labelled("alone", {"a": [1], "b": [2]}))


def test_depth_is_averaged_in_each_image_and_then_over_images(world: World) -> None:
    none = [[0, np.nan, np.inf, -1]]
    given = sets.read_depth(*world.maps([[[2, 4, 0, np.nan]], [[1, np.inf, 0, 0]], none]))
    # Image 0: errors 1 and 1 of 2 and 4; 3 is not within 1.25 of 2, and 5 is not within it of 4.
    # Image 1: error 0.2 of 1, within a factor of 1.25. Image 2 has no depth and does not count.
    world.model.maps = {0: [[3, 5, 9, 9]], 1: [[1.2, 9, 9, 9]], 2: [[1, 1, 1, 1]]}
    relative = 100 * ((1 / 2 + 1 / 4) / 2 + 0.2) / 2
    wanted = {"RMSE (m)": (1 + 0.2) / 2, "AbsRel (%)": relative, "delta1": 50.0}
    assert values(world.score(tasks.score_depth, given, resolution=28)) == pytest.approx(wanted)
    asked = world.model.requests[0]
    assert (asked.method, asked.fields["resolution"]) == ("estimate_depth", 28)
    # Estimates are moved into the range that counts.
    near = replace(sets.read_depth(*world.maps([[[0.5, 9, 10, 12]]], "far")), range_m=(1.0, 10.0))
    world.model.maps = {0: [[7, 12, 7, 7]]}
    assert values(world.score(tasks.score_depth, near))["RMSE (m)"] == pytest.approx(1.0)
    for maps, place, sentence in (
        ([none], "empty", "no image has depth to compare with"),
        ([[[1, 1, 1]]], "other", r"0\.npy has \(1, 3\), its image \(1, 4\) rows and"),
    ):
        with pytest.raises(sets.SetError, match=sentence):
            world.score(tasks.score_depth, sets.read_depth(*world.maps(maps, place)))


def test_angles_are_averaged_over_all_pixels_or_in_each_image(world: World) -> None:
    ahead, none = (0, 0, 1), (0, 0, 0)
    maps = [[[ahead, ahead, ahead]], [[(0, 0, 1.2), none, [np.nan] * 3]]]
    given = sets.read_normals(*world.maps(maps))
    world.model.maps = {0: [turned(10, 20, 180)], 1: [turned(25, 0, 0)]}
    squares = 10**2 + 20**2 + 180**2
    metrics = ["mean angle (degrees)", "RMSE (degrees)"]
    metrics += [f"under {limit} degrees" for limit in ("11.25", "22.5", "30")]
    for by_image, numbers in (
        (False, ((210 + 25) / 4, ((squares + 25**2) / 4) ** 0.5, 25, 50, 75)),
        (True, ((210 / 3 + 25) / 2, ((squares / 3) ** 0.5 + 25) / 2, 100 / 6, 200 / 6, 500 / 6)),
    ):
        result = world.score(tasks.score_normals, replace(given, by_image=by_image))
        assert values(result) == pytest.approx(dict(zip(metrics, numbers, strict=True)))
    assert world.model.requests[0].method == "estimate_normals"
