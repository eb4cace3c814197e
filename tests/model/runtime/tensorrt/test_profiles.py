"""Every image and text has a profile, and batches are rounded up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.graphs import DENSE_TASKS, Part
from model.manifest import Manifest
from model.runtime.tensorrt.byte_pixels import BYTE_PIXELS
from model.runtime.tensorrt.profiles import batches, choose_profile, profiles_for, runs_of
from tests.model.runtime.conftest import make_manifest

UNIT = 14


def manifest(
    native: int = 8, buckets: tuple[tuple[int, int], ...] = ((8, 8), (8, 11)), unit: int = UNIT
) -> Manifest:
    """Sizes in units: the native side and the buckets; up to four times the native side."""
    return make_manifest(
        native_size=native * unit,
        min_size=unit,
        max_size=4 * native * unit,
        size_multiple=unit,
        shape_buckets=[(height * unit, width * unit) for height, width in buckets],
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    native = draw(st.integers(1, 40))
    side = st.integers(1, 4 * native)
    buckets = draw(st.lists(st.tuples(side, side), min_size=1, max_size=8))
    return manifest(native, tuple(buckets), draw(st.sampled_from([14, 28])))


@settings(max_examples=40)
@given(page=manifests(), data=st.data())
def test_every_allowed_image_has_a_profile_and_buckets_have_their_own(
    page: Manifest, data: st.DataObject
) -> None:
    profiles = profiles_for("vision", page)
    sides = st.integers(page.min_size // page.size_multiple, page.max_size // page.size_multiple)
    height, width = (data.draw(sides) * page.size_multiple for _ in range(2))
    chosen = choose_profile(profiles, {BYTE_PIXELS: (3, 3, height, width)})
    assert chosen is not None
    span = profiles[chosen][BYTE_PIXELS]
    is_bucket = (height, width) in page.shape_buckets
    most = 64 if is_bucket else 1
    assert (span.smallest[0], span.best[0], span.largest[0]) == (1, min(8, most), most)
    if is_bucket:
        assert batches(profiles[chosen]) == [1, 2, 4, 8, 16, 32, 64]
    parts: tuple[Part, ...] = ("vision", *DENSE_TASKS)
    for part in parts:
        unit = page.size_multiple if part == "vision" else 28
        for profile in profiles_for(part, page):
            span = profile[BYTE_PIXELS]
            for shape in (span.smallest, span.best, span.largest):
                assert all(side % unit == 0 for side in shape[2:])


@pytest.mark.parametrize(
    ("num_items", "runs"),
    [(1, [1]), (3, [4]), (5, [8]), (33, [64]), (64, [64]), (70, [64, 8]), (130, [64, 64, 2])],
)
def test_batches_are_rounded_up_to_powers_of_two(num_items: int, runs: list[int]) -> None:
    found = list(runs_of(num_items, 64))
    assert [batch for _, batch in found] == runs
    items = list(range(num_items))
    assert [item for rows, _ in found for item in items[rows]] == items
