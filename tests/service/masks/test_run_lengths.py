"""Run lengths say what pycocotools says of the same masks, and give them back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from service.outputs.contours import class_runs, compress_counts

# pycocotools' own code is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")

sides = st.integers(1, 12)


def check(labels_HW: NDArray[np.unsignedinteger], num_classes: int) -> None:
    runs = class_runs(labels_HW, num_classes)
    texts = compress_counts([run.counts for run in runs])
    assert len(runs) == len(texts) == num_classes
    for label, (run, text) in enumerate(zip(runs, texts, strict=True), start=1):
        is_in_HW = np.asfortranarray(labels_HW == label)
        judged = coco.encode(is_in_HW.astype(np.uint8))
        assert text == judged["counts"].decode()
        assert run.area == coco.area(judged) == is_in_HW.sum()
        assert list(run.box) == coco.toBbox(judged).tolist()
        plain = coco.frPyObjects(
            {"size": is_in_HW.shape, "counts": run.counts.tolist()}, *is_in_HW.shape
        )
        np.testing.assert_array_equal(coco.decode(plain), is_in_HW)


@given(
    seed=st.integers(0, 2**32 - 1),
    size_hw=st.tuples(sides, sides),
    num_classes=st.integers(1, 5),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
@settings(deadline=None, max_examples=150)
def test_noise_is_encoded_as_pycocotools_does(
    seed: int, size_hw: tuple[int, int], num_classes: int, dtype: type[np.unsignedinteger]
) -> None:
    # One class more than is asked for: some labels count as nothing.
    labels_HW = np.random.default_rng(seed).integers(0, num_classes + 2, size_hw).astype(dtype)
    check(labels_HW, num_classes)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size_hw", [(1, 3000), (3000, 1), (701, 499)])
def test_long_runs_are_encoded_as_pycocotools_does(
    size_hw: tuple[int, int], dtype: type[np.unsignedinteger]
) -> None:
    y, x = np.ogrid[: size_hw[0], : size_hw[1]]
    check(((x // 170 + y // 90) % 4).astype(dtype), 4)


def test_a_class_that_is_nowhere_has_one_run_outside() -> None:
    (run,) = class_runs(np.zeros((3, 4), np.uint8), 1)
    assert (run.counts.tolist(), run.area, run.box) == ([12], 0, (0, 0, 0, 0))
