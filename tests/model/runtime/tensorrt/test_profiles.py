"""Every image and text has a profile, and buckets have one for themselves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.graphs import DENSE_TASKS, Part
from model.manifest import Manifest
from model.runtime.tensorrt.profiles import (
    EngineOptions,
    ShapeRange,
    choose_profile,
    profiles_for,
    split_batch,
)
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
def test_every_allowed_image_has_a_profile(page: Manifest, data: st.DataObject) -> None:
    options = EngineOptions(max_batch=16, best_batch=4)
    profiles = profiles_for("vision", page, options)
    sides = st.integers(page.min_size // page.size_multiple, page.max_size // page.size_multiple)
    height, width = (data.draw(sides) * page.size_multiple for _ in range(2))
    chosen = choose_profile(profiles, {"pixel_values": (3, 3, height, width)})
    assert chosen is not None
    shapes = profiles[chosen]["pixel_values"]
    if (height, width) in page.shape_buckets:
        assert shapes.num_item_shapes == 1
        assert (shapes.smallest[0], shapes.best[0], shapes.largest[0]) == (1, 4, 16)


@settings(max_examples=40)
@given(page=manifests())
def test_profiles_begin_and_end_at_sizes_that_the_package_allows(page: Manifest) -> None:
    parts: tuple[Part, ...] = ("vision", *DENSE_TASKS)
    for part in parts:
        unit = page.size_multiple if part == "vision" else 28
        for profile in profiles_for(part, page, EngineOptions()):
            shapes = profile["pixel_values"]
            for shape in (shapes.smallest, shapes.best, shapes.largest):
                assert all(side % unit == 0 for side in shape[2:])


@pytest.mark.parametrize("task", DENSE_TASKS)
def test_heads_have_buckets_of_two_patches_only(task: Part) -> None:
    profiles = profiles_for(task, manifest(), EngineOptions())
    exact = [p["pixel_values"].best[2:] for p in profiles if p["pixel_values"].num_item_shapes == 1]
    assert exact == [(112, 112)]  # 11 patches are odd


def test_a_large_image_runs_alone() -> None:
    profiles = profiles_for("vision", manifest(), EngineOptions(max_batch=8))
    chosen = choose_profile(profiles, {"pixel_values": (2, 3, 32 * UNIT, 32 * UNIT)})
    assert chosen is not None
    assert profiles[chosen]["pixel_values"].largest[0] == 1


@settings(max_examples=40)
@given(length=st.integers(1, 64))
def test_every_text_has_a_profile(length: int) -> None:
    profiles = profiles_for("text", manifest(), EngineOptions(max_texts=100))
    chosen = choose_profile(profiles, dict.fromkeys(("input_ids", "attention_mask"), (1, length)))
    assert chosen is not None
    largest = profiles[chosen]["input_ids"].largest
    assert largest == (100, 16 if length <= 16 else 64)


@pytest.mark.parametrize("shape", [(1, 3, 7, 14), (1, 3, 14, 14 * 33), (1, 3, 14)])
def test_a_shape_outside_every_profile_has_none(shape: tuple[int, ...]) -> None:
    profiles = profiles_for("vision", manifest(), EngineOptions())
    assert choose_profile(profiles, {"pixel_values": shape}) is None
    assert choose_profile(profiles, {"other": (1, 3, 14, 14)}) is None


@settings(max_examples=40)
@given(num_items=st.integers(1, 2000), most=st.integers(1, 64))
def test_a_batch_is_cut_into_few_even_runs(num_items: int, most: int) -> None:
    runs = split_batch(num_items, most)
    assert sum(runs) == num_items
    assert len(runs) == -(-num_items // most)
    assert max(runs) <= most
    assert max(runs) - min(runs) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_batch": 9, "max_batch": 8}, "at most 8 images, not 9"),
        ({"best_texts": 0}, "at least one"),
        ({"optimization_level": 6}, "0 to 5"),
        ({"workspace_bytes": 0}, "leave it out"),
    ],
)
def test_impossible_options_and_ranges_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineOptions(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no range of shapes"):
        ShapeRange((1, 2), (1, 4), (1, 3))
