"""How much one batch of images may hold."""

from typing import Any

import pytest

from model.package import Manifest
from model.runtime.base import Device
from service.lanes.work import BatchLimits
from service.models.loading import batch_limits, image_budget


@pytest.mark.parametrize(
    ("device", "given", "patches"),
    [
        ("cpu", {}, 12),  # three images of 28 x 28 pixels, four patches each
        ("cpu", {"max_batch_patches": 8}, 8),
        ("cpu", {"max_batch_images": 3}, 4096),
        ("gpu", {}, 4096),
    ],
)
def test_on_a_cpu_large_images_do_not_share_a_batch(
    manifest: Manifest, make_settings: Any, device: Device, given: dict[str, int], patches: int
) -> None:
    settings = make_settings(**given)
    assert image_budget(manifest, 3, device, settings) == patches


@pytest.mark.parametrize(("max_images", "of_maps"), [(1, 1), (4, 2), (7, 3)])
def test_a_batch_holds_half_as_many_maps(make_settings: Any, max_images: int, of_maps: int) -> None:
    limits = batch_limits(max_images, 100, {"normals": 40}, make_settings())
    assert limits["image"] == BatchLimits(max_items=max_images, max_cost=100)
    assert limits["depth"] == BatchLimits(max_items=of_maps, max_cost=50)
    assert limits["normals"] == BatchLimits(max_items=of_maps, max_cost=40), "as memory allows"
    assert limits["text"].max_items == make_settings().max_batch_texts
