"""Memory at its peak is told by the kernel, and bounds what a batch may hold."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.lanes.machine import BatchMemory, PeakMeter
from service.lanes.work import Bucket

MB = 2**20
SMALL, LARGE = Bucket("image", (28, 28)), Bucket("image", (56, 112))


def num_patches(bucket: Bucket) -> int:
    return math.prod(bucket.shape) // 14**2


def use(num_bytes: int) -> None:
    """Write into memory that is given back at once."""
    assert np.ones(num_bytes, np.uint8)[-1] == 1


def test_memory_that_came_and_went_is_seen_and_counted_once() -> None:
    meter = PeakMeter()
    large_bytes = meter.peak_bytes(partial(use, 300 * MB))
    if large_bytes is None:
        pytest.skip("this system lets no process reset its high-water mark")
    small_bytes = meter.peak_bytes(partial(use, 60 * MB))
    assert small_bytes is not None
    assert 250 * MB < large_bytes < 400 * MB
    assert small_bytes < 150 * MB, "the larger one before it is not seen again"


def test_where_the_system_does_not_tell_nothing_is_claimed(tmp_path: Path) -> None:
    ran: list[bool] = []
    assert PeakMeter(tmp_path / "no-proc").peak_bytes(lambda: ran.append(True)) is None
    assert ran == [True]
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t 100 kB\nVmHWM:\t 350 kB\n")
    assert PeakMeter(tmp_path).peak_bytes(lambda: None) == 250 * 1024


def test_without_a_measurement_memory_bounds_nothing() -> None:
    assert BatchMemory({}).patches_within(MB, num_patches) is None
    assert BatchMemory({SMALL: 0}).patches_within(MB, num_patches) is None


def test_a_head_has_a_bound_of_its_own() -> None:
    memory = BatchMemory({LARGE: 32 * MB, Bucket("depth", (28, 28)): 40 * MB})
    assert memory.largest_bytes == 40 * MB
    assert memory.patches_within(64 * MB, num_patches) == 64
    assert memory.patches_within(64 * MB, num_patches, "depth") == 6
    assert memory.patches_within(64 * MB, num_patches, "normals") is None


@given(
    small=st.integers(1, 10**9),
    large=st.integers(1, 10**9),
    budget=st.integers(0, 10**11),
)
def test_a_batch_within_the_bound_fits_by_what_the_largest_shape_took(
    small: int, large: int, budget: int
) -> None:
    memory = BatchMemory({SMALL: small, LARGE: large})
    patches = memory.patches_within(budget, num_patches)
    assert patches is not None
    assert patches * large <= max(budget, 1) * num_patches(LARGE) or patches <= budget
    assert patches <= budget
