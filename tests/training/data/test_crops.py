"""Crops: the sizes asked for, parts of the image, the same for the same number."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from training.data.crops import CropConfig, crop_images

CONFIG = CropConfig(global_size=28, num_local=3, local_size=14)


@pytest.fixture
def image() -> Tensor:
    """A ramp: red grows to the right, green downwards."""
    across = torch.arange(60, dtype=torch.uint8) * 4
    down = torch.arange(40, dtype=torch.uint8) * 6
    flat = torch.full((40, 60), 90, dtype=torch.uint8)
    return torch.stack([across.expand(40, 60), down[:, None].expand(40, 60), flat])


def test_a_batch_of_crops_is_a_function_of_the_seed_and_the_first_number(image: Tensor) -> None:
    def crop(seed: int, first: int, *images: Tensor) -> tuple[Tensor, Tensor]:
        return crop_images(images, CONFIG, seed=seed, first=first)

    pixels_B3HW, locals_CB3hw = crop(3, 5, image, image[:, :30])
    assert (pixels_B3HW.shape, locals_CB3hw.shape) == ((2, 3, 28, 28), (3, 2, 3, 14, 14))
    assert (pixels_B3HW[:, 2] == 90).all()  # colours stay as they are
    torch.manual_seed(99)
    state = torch.get_rng_state()
    for row, one in enumerate((image, image[:, :30])):
        (whole,), parts = crop(3, 5 + row, one)
        assert torch.equal(whole, pixels_B3HW[row])
        assert torch.equal(parts[:, 0], locals_CB3hw[:, row])
    assert torch.equal(torch.get_rng_state(), state)
    for other in (crop(3, 6, image), crop(4, 5, image)):
        assert not torch.equal(other[0][0], pixels_B3HW[0])


def test_half_of_the_crops_are_mirrored_and_local_ones_are_smaller(image: Tensor) -> None:
    pixels_B3HW, locals_CB3hw = crop_images([image] * 40, CONFIG, seed=0, first=0)
    crops = {"global": pixels_B3HW.int(), "local": locals_CB3hw.flatten(0, 1).int()}
    steps = {kind: crop[:, 0, 7, -1] - crop[:, 0, 7, 0] for kind, crop in crops.items()}
    assert all(0.25 < (step < 0).float().mean() < 0.75 for step in steps.values())
    assert steps["local"].abs().float().mean() < steps["global"].abs().float().mean() * 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_size": 30}, "multiple of 14"),
        ({"local_size": 0}, "greater than 0"),
        ({"num_local": -1}, "num_local"),
        ({"local_scale": (0.5, 0.2)}, "local_scale"),
        ({"aspect": (2.0, 1.0)}, "aspect"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
