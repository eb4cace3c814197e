"""How much one batch of pictures may hold."""

from typing import Any

import pytest

from model.package import Manifest
from model.runtime.base import Device
from service.models.loading import image_budget


@pytest.mark.parametrize(
    ("device", "given", "patches"),
    [
        ("cpu", {}, 12),  # three pictures of 28 x 28 pixels, four patches each
        ("cpu", {"max_batch_patches": 8}, 8),
        ("cpu", {"max_batch_images": 3}, 4096),
        ("gpu", {}, 4096),
    ],
)
def test_on_a_cpu_large_pictures_do_not_share_a_batch(
    manifest: Manifest, make_settings: Any, device: Device, given: dict[str, int], patches: int
) -> None:
    settings = make_settings(**given)
    assert image_budget(manifest, 3, device, settings) == patches
