"""Crops: the sizes asked for, parts of the image, the same for the same number."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from training.data.crops import CropConfig, Flips, crop_image, crop_images

CONFIG = CropConfig(global_size=28, num_local=3, local_size=14, flips="all")


@pytest.fixture
def image() -> Tensor:
    """A ramp: red grows to the right, green downwards."""
    across = torch.arange(60, dtype=torch.uint8) * 4
    down = torch.arange(40, dtype=torch.uint8) * 6
    flat = torch.full((40, 60), 90, dtype=torch.uint8)
    return torch.stack([across.expand(40, 60), down[:, None].expand(40, 60), flat])


def is_mirrored(crop_3HW: Tensor) -> bool:
    """Whether the ramp runs from right to left."""
    red_HW = crop_3HW[0].float()
    return bool(red_HW[:, 0].mean() > red_HW[:, -1].mean())


def test_a_crop_is_a_function_of_the_seed_and_the_number(image: Tensor) -> None:
    def crop(seed: int, index: int) -> list[int]:
        whole, parts = crop_image(image, CONFIG, seed=seed, index=index)
        # Colours stay as they are.
        assert (whole[2] == 90).all()
        assert (parts[:, 2] == 90).all()
        assert whole[0].max() <= 236
        return [*whole.flatten().tolist(), *parts.flatten().tolist()]

    first = crop(3, 5)
    torch.manual_seed(99)
    assert crop(3, 5) == first
    assert first not in (crop(3, 6), crop(4, 5))


def test_local_crops_show_less_than_global_ones(image: Tensor) -> None:
    def area(crop_3HW: Tensor) -> float:
        # The ramps span 236 x 234, so the spread of a crop is its share of the area.
        ramps_2N = crop_3HW[:2].flatten(1).float()
        return float((ramps_2N.max(1).values - ramps_2N.min(1).values).prod()) / (236 * 234)

    views = [crop_image(image, CONFIG, seed=0, index=i) for i in range(40)]
    areas = [area(whole) for whole, _ in views]
    assert max(area(part) for _, parts in views for part in parts) < 0.4
    assert min(areas) > 0.3
    assert max(areas) > 0.8


@pytest.mark.parametrize(
    ("flips", "is_global_flipped", "is_local_flipped"),
    [("none", False, False), ("locals", False, True), ("all", True, True)],
)
def test_flips_mirror_about_half_of_the_crops_they_are_for(
    image: Tensor, flips: Flips, is_global_flipped: bool, is_local_flipped: bool
) -> None:
    config = replace(CONFIG, flips=flips)
    views = [crop_image(image, config, seed=0, index=i) for i in range(60)]
    num_global = sum(is_mirrored(whole) for whole, _ in views)
    num_local = sum(is_mirrored(part) for _, parts in views for part in parts)
    assert (15 < num_global < 45) if is_global_flipped else num_global == 0
    assert (60 < num_local < 120) if is_local_flipped else num_local == 0


def test_without_a_size_the_image_stays_whole(image: Tensor) -> None:
    whole, parts = crop_image(image, CropConfig(), seed=0, index=0)
    assert torch.equal(whole, image)
    assert parts.shape[0] == 0


def test_a_batch_is_cropped_image_by_image_from_its_first_number(image: Tensor) -> None:
    images = [image, image[:, :30]]
    pixels_B3HW, locals_CB3hw = crop_images(images, CONFIG, seed=1, first=7)
    assert locals_CB3hw.shape == (3, 2, 3, 14, 14)
    for row, one in enumerate(images):
        whole, parts = crop_image(one, CONFIG, seed=1, index=7 + row)
        assert torch.equal(pixels_B3HW[row], whole)
        assert torch.equal(locals_CB3hw[:, row], parts)
    with pytest.raises(ValueError, match=r"crops\.global_size"):
        crop_images(images, CropConfig(), seed=0, first=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_size": 30}, "multiple of 14"),
        ({"local_size": 0}, "multiple of 14"),
        ({"num_local": -1}, "num_local"),
        ({"local_scale": (0.5, 0.2)}, "local_scale"),
        ({"aspect": (2.0, 1.0)}, "aspect"),
        ({"flips": "some"}, "flips"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
