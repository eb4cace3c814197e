"""Cuts an image into one global crop and some local ones: random resized crops and flips.

Each is mirrored half of the time. As in the paper, there is no colour jitter and no blur.

Legend: B images, C local crops of each, H W pixels of the image or the global
crop, h w of a local crop.
"""

from collections.abc import Sequence
from functools import cache
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, MultipleOf
from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from training.settings import STRICT

PATCH = 14
_STREAM = 11  # separates crops from other random choices for the same image

Side = Annotated[int, Gt(0), MultipleOf(PATCH)]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CropConfig:
    """How images are cropped.

    TIPSv2 uses one global crop of 224 and six local ones of 98 pixels, and 448 and 140 in the
    high-resolution stage: `TIPSV2_CROPS` and `TIPSV2_HIGH_RES_CROPS`.

    Attributes:
        global_size: Side of the global crop in pixels.
        num_local: Local crops, C; 0 makes none.
        local_size: Side of a local crop in pixels.
        global_scale: Share of the image's area that the global crop covers, smallest and
            largest. Not published; DINO's (arXiv:2104.14294), whose recipe TIPS builds on.
        local_scale: The same for local crops; ends where the global range starts. Not published;
            DINO's.
        aspect: Smallest and largest width / height of a crop. Not published; the range of Inception
            (arXiv:1409.4842), common in this family.

    Source: TIPSv2, arXiv:2604.12012, the training details.
    """

    global_size: Side
    num_local: NonNegativeInt = 0
    local_size: Side = 42
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} needs 0 < smallest <= largest <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError("aspect needs 0 < smallest <= largest")


TIPSV2_CROPS = CropConfig(global_size=224, num_local=6, local_size=98)
TIPSV2_HIGH_RES_CROPS = CropConfig(global_size=448, num_local=6, local_size=140)


@cache
def _transforms(config: CropConfig) -> tuple[v2.Transform, v2.Transform]:
    """Build the global crop's and the local crops' transform."""

    def cut(size: int, scale: tuple[float, float]) -> v2.Transform:
        bilinear = InterpolationMode.BILINEAR
        crop = v2.RandomResizedCrop(size, scale, config.aspect, bilinear, antialias=True)
        return v2.Compose([crop, v2.RandomHorizontalFlip(0.5)])

    return cut(config.global_size, config.global_scale), cut(config.local_size, config.local_scale)


def crop_image(
    image_3HW: Tensor, config: CropConfig, *, seed: int, index: int
) -> tuple[Tensor, Tensor]:
    """Cut the global crop and the local ones, each from the whole image.

    Args:
        image_3HW: uint8 RGB.
        config: How.
        seed: The data set's.
        index: The image's place in the stream of images of all ranks and epochs. It determines all
            random choices together with the seed, independent of ranks and restarts. torch's own
            random state is not changed.

    Returns:
        The global crop uint8 [3, H, W] and the local crops uint8 [C, 3, h, w].
    """
    global_transform, local_transform = _transforms(config)
    state = np.random.SeedSequence((seed, index, _STREAM)).generate_state(1, np.uint64)
    # `torch.manual_seed` would seed every kind of accelerator, in 8 % of the time of an image.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(state[0]))
        whole = global_transform(image_3HW)
        parts = [local_transform(image_3HW) for _ in range(config.num_local)]
    side = config.local_size
    return whole, torch.stack(parts) if parts else whole.new_zeros((0, 3, side, side))


def crop_images(
    images: Sequence[Tensor], config: CropConfig, *, seed: int, first: int
) -> tuple[Tensor, Tensor]:
    """Crop a batch of images, uint8 [3, H, W] each, whose places in the stream follow `first`.

    Returns:
        Global crops [B, 3, H, W] and local crops [C, B, 3, h, w], uint8.
    """
    crops = [
        crop_image(image, config, seed=seed, index=index)
        for index, image in enumerate(images, start=first)
    ]
    pixels_B3HW = torch.stack([whole for whole, _ in crops])
    return pixels_B3HW, torch.stack([parts for _, parts in crops], dim=1)
