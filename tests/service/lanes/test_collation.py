"""Items become arrays, and rows of arrays are found again."""

import numpy as np

from service.lanes.work import Bucket
from service.lanes.worker import collate, take_rows

IMAGE, TEXT = Bucket("image", (28, 28)), Bucket("text", (8,))


def test_images_are_stacked_in_order() -> None:
    images = [np.full((3, 28, 28), n, np.float32) for n in range(3)]
    (pixels,) = collate(IMAGE, images)
    assert pixels.shape == (3, 3, 28, 28)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[:, 0, 0, 0], [0, 1, 2])


def test_texts_are_padded_to_the_longest_and_masked() -> None:
    ids, mask = collate(TEXT, [np.array([7, 8, 9]), np.array([5])])
    np.testing.assert_array_equal(ids, [[7, 8, 9], [5, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 0]])
    assert ids.dtype == mask.dtype == np.int64


def test_rows_are_taken_in_the_order_asked_for() -> None:
    inputs = collate(TEXT, [np.array([n]) for n in range(4)])
    ids, mask = take_rows(inputs, [3, 1])
    np.testing.assert_array_equal(ids, [[3], [1]])
    assert mask.shape == (2, 1)


def test_the_first_rows_are_not_copied() -> None:
    inputs = collate(TEXT, [np.array([n]) for n in range(4)])
    ids, _ = take_rows(inputs, [0, 1, 2])
    assert ids.base is inputs[0]
    np.testing.assert_array_equal(ids, [[0], [1], [2]])
