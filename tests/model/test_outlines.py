"""Maps follow the outlines of an image."""

import numpy as np
import pytest
from PIL import Image

from model import outlines
from model.outlines import make_guide, outline

GRID = (4, 5)


def halves(left: int, right: int, split: int = 72) -> Image.Image:
    """An image of 5 x 4 patches of 32 pixels, whose colour changes within the third column."""
    pixels_HW3 = np.full((128, 160, 3), left, np.uint8)
    pixels_HW3[:, split:] = right
    return Image.fromarray(pixels_HW3)


@pytest.mark.parametrize(("patch_size", "places"), [(32, 8), (16, 4), (14, 4), (4, 1)])
def test_a_guide_has_some_places_for_each_patch(patch_size: int, places: int) -> None:
    image = Image.new("RGB", (3 * patch_size, 2 * patch_size), (255, 0, 0))
    guide_3YX = make_guide(image, patch_size)
    assert guide_3YX.shape == (3, 2 * places, 3 * places)
    assert guide_3YX[:, 0, 0].tolist() == [76, 84, 255]
    assert make_guide(image.convert("L"), patch_size).shape == guide_3YX.shape


def test_a_map_changes_where_the_colour_does() -> None:
    maps_Khw = np.zeros((1, *GRID), np.float32)
    maps_Khw[:, :, :2], maps_Khw[:, :, 2] = 1, 0.5
    found_YX = outline(maps_Khw, make_guide(halves(20, 200), 32))[0]
    assert found_YX.shape == (32, 40)
    assert (found_YX[:, :18] > 0.6).all()
    assert (found_YX[:, 18:] < 0.4).all()
    assert found_YX[:, 17].min() - found_YX[:, 18].max() > 0.3


@pytest.mark.parametrize("right", [20, 21])
def test_without_colours_a_map_is_smooth_and_keeps_its_range(right: int) -> None:
    maps_Khw = np.random.default_rng(0).standard_normal((3, *GRID)).astype(np.float32)
    found_KYX = outline(maps_Khw, make_guide(halves(20, right), 32))
    for map_hw, found_YX in zip(maps_Khw, found_KYX, strict=True):
        assert map_hw.min() <= found_YX.min() <= found_YX.max() <= map_hw.max()
    step = np.abs(np.diff(found_KYX, axis=2)).max()
    assert step < 0.3 * np.abs(np.diff(maps_Khw, axis=2)).max()
    np.testing.assert_allclose(
        outline(np.ones_like(maps_Khw), make_guide(halves(9, 99), 32)), 1, rtol=1e-6
    )


def test_a_colour_far_from_all_others_takes_what_is_near(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = halves(20, 20)
    image.paste((255, 0, 0), (64, 32, 68, 36))
    maps_Khw = np.arange(20, dtype=np.float32).reshape(1, *GRID)
    guide_3YX = make_guide(image, 32)
    found_KYX = outline(maps_Khw, guide_3YX)
    assert found_KYX[0, 8, 16] == pytest.approx(found_KYX[0, 8, 17], abs=1)
    monkeypatch.setattr(outlines, "BAND_WEIGHTS", 1)
    np.testing.assert_array_equal(outline(maps_Khw, guide_3YX), found_KYX)


def test_many_maps_have_a_coarser_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    maps_Khw = np.random.default_rng(0).standard_normal((3, *GRID)).astype(np.float32)
    guide_3YX = make_guide(halves(20, 200), 32)
    for most, factor in ((3 * 20 * 64, 8), (3 * 20 * 64 - 1, 4), (3 * 20 * 4, 2), (3 * 20, 1)):
        monkeypatch.setattr(outlines, "MAX_VALUES", most)
        assert outline(maps_Khw, guide_3YX).shape == (3, 4 * factor, 5 * factor)
    np.testing.assert_array_equal(outline(maps_Khw, guide_3YX), maps_Khw)
