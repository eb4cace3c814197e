"""Classes from examples: which patches a point, box or mask stands for."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from service.errors import InvalidRequest
from service.images import Windows
from service.messages import ClassExample, RunLengths, SegmentClass
from service.outputs.examples import PatchMap, example_embeddings
from service.outputs.slide import Geometry

pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
# An image of 60 x 90 pixels as 2 x 3 patches; patch i is the unit vector i.
WHOLE = PatchMap([np.eye(6, dtype=np.float32)], Geometry((2, 3), (60, 90), (28, 42)))


def runs(mask_HW: Any) -> RunLengths:
    found = coco.encode(np.asfortranarray(mask_HW, np.uint8))
    height, width = found["size"]
    return RunLengths(size_hw=(height, width), counts=found["counts"].decode())


def columns(*chosen: int) -> RunLengths:
    mask_HW = np.zeros((60, 90), np.uint8)
    mask_HW[:, list(chosen)] = 1
    return runs(mask_HW)


@pytest.mark.parametrize(
    ("example", "patches"),
    [
        (ClassExample(), [0, 1, 2, 3, 4, 5]),
        (ClassExample(point=(0, 0)), [0]),
        (ClassExample(point=(89.9, 59.9)), [5]),
        (ClassExample(point=(45, 29)), [1]),
        (ClassExample(box=(0, 0, 90, 30)), [0, 1, 2]),
        (ClassExample(box=(10, 10, 10, 40)), [0, 3]),
        (ClassExample(box=(31, 31, 4, 4)), [4]),  # no centre within it
        (ClassExample(mask=columns(*range(40, 60))), [1, 4]),
        (ClassExample(mask=columns(*range(90))), [0, 1, 2, 3, 4, 5]),
        (ClassExample(mask=columns(*range(1, 90))), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_region_stands_for_its_patches(example: ClassExample, patches: list[int]) -> None:
    mean_D = WHOLE.mean(example, "x")
    assert np.flatnonzero(mean_D).tolist() == patches
    np.testing.assert_allclose(mean_D[patches], 1 / len(patches), rtol=1e-6)


def test_a_point_stands_for_its_patch_in_every_window() -> None:
    windows = Windows(side=28, stride=14)
    parts = list(np.eye(8, dtype=np.float32).reshape(2, 4, 8))
    seen = PatchMap(parts, Geometry((2, 2), (56, 84), (28, 42), windows))
    # The middle column of patches is in both windows.
    found = [
        np.flatnonzero(seen.mean(ClassExample(point=(x, 5)), "x")).tolist() for x in (5, 42, 80)
    ]
    assert found == [[0], [1, 4], [5]]


def test_a_class_is_the_mean_of_its_examples() -> None:
    one = SegmentClass(
        name="a", examples=(ClassExample(point=(0, 0)), ClassExample(image=1, point=(89, 59)))
    )
    other = SegmentClass(name="b", examples=(ClassExample(image=1),))
    found = example_embeddings([("classes[0]", one), ("classes[1]", other)], {0: WHOLE, 1: WHOLE})
    np.testing.assert_allclose(found[0], [0.5**0.5, 0, 0, 0, 0, 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(found[1], [6**-0.5] * 6, rtol=1e-6)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (ClassExample(point=(90, 0)), "x.point is not within the image, which has 90 x 60"),
        (ClassExample(point=(float("nan"), 0)), "x.point is not within"),
        (ClassExample(box=(0, 0, 0, 10)), "x.box is not within"),
        (ClassExample(box=(80, 0, 20, 10)), "x.box is not within"),
        (ClassExample(mask=runs(np.ones((90, 60)))), "are of 90 x 60 and 5400 pixels"),
        (ClassExample(mask=columns()), "the centre of no patch"),
        (ClassExample(mask=RunLengths(size_hw=(60, 90), counts="")), "not COCO's"),
        (ClassExample(mask=RunLengths(size_hw=(60, 90), counts="P")), "not COCO's"),
        (ClassExample(mask=RunLengths(size_hw=(60, 90), counts="\u00e9 ")), "not COCO's"),
        (ClassExample(mask=RunLengths(size_hw=(60, 90), counts="o" * 8 + "0")), "too large"),
        (ClassExample(mask=RunLengths(size_hw=(60, 90), counts="O1")), "negative"),
        (ClassExample(mask=RunLengths(size_hw=(60, 90), counts="11")), "2 pixels"),
    ],
)
def test_a_region_that_is_not_of_the_image_is_refused(example: ClassExample, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        WHOLE.mean(example, "x")
