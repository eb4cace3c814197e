"""From encoded pictures to what the model sees: all headers first, then decode and scale.

Shape legend: H W pixels.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model.preprocess import Fit, prepare_image, target_size
from service.errors import InvalidRequest
from service.image_codec import ImageLimits, decode_image, read_size

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRule:
    """How a picture's size becomes the model's: in pixels, for one model and one request."""

    resolution: int
    fit: Fit
    patch_size: int
    multiple: int

    @property
    def nominal_patches(self) -> int:
        """Patches of a square picture."""
        return (self.resolution // self.patch_size) ** 2

    def target_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width to scale to."""
        height, width = size_hw
        return target_size(
            height, width, resolution=self.resolution, fit=self.fit, multiple=self.multiple
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """A picture as the model sees it, float32 [3, H, W], and its own height and width, upright."""

    pixels_3HW: NDArray[np.float32]
    size_hw: tuple[int, int]


class ImagePreparer:
    """Prepares pictures in a pool of threads; may be used from any event loop."""

    def __init__(self, limits: ImageLimits, *, max_patches: int, pool: Executor) -> None:
        self._limits = limits
        self._max_patches = max_patches
        self._pool = pool

    async def measure(self, images: Sequence[bytes], rule: SizeRule) -> int:
        """Patches of all pictures together, from their headers alone.

        Raises:
            InvalidRequest: The first picture that is unreadable or too large.
        """
        sizes = await self._each(lambda data, param: self._num_patches(data, rule, param), images)
        return sum(sizes)

    async def prepare(self, images: Sequence[bytes], rule: SizeRule) -> list[PreparedImage]:
        """Decode and scale all pictures.

        Raises:
            InvalidRequest: The first picture that is broken.
        """
        return await self._each(lambda data, param: self._decode(data, rule, param), images)

    def _num_patches(self, data: bytes, rule: SizeRule, param: str) -> int:
        size_hw = read_size(data, self._limits, param=param)
        target_hw = rule.target_hw(size_hw)
        num_patches = target_hw[0] * target_hw[1] // rule.patch_size**2
        if num_patches > self._max_patches:
            raise InvalidRequest(
                f"{param}: {size_hw[1]} x {size_hw[0]} pixels at resolution {rule.resolution} are "
                f"{num_patches} patches; at most {self._max_patches} fit. Crop the picture, lower "
                "the resolution, or use fit squash.",
                code="image_too_large",
                param=param,
            )
        return num_patches

    def _decode(self, data: bytes, rule: SizeRule, param: str) -> PreparedImage:
        pixels_HW3 = decode_image(data, self._limits, param=param)
        size_hw = pixels_HW3.shape[0], pixels_HW3.shape[1]
        pixels_3HW = prepare_image(pixels_HW3, rule.target_hw(size_hw))
        return PreparedImage(pixels_3HW=pixels_3HW, size_hw=size_hw)

    async def _each(
        self, work: Callable[[bytes, str], ResultT], images: Sequence[bytes]
    ) -> list[ResultT]:
        """Do the work for every picture in the pool; of several failures the first index raises."""
        loop = asyncio.get_running_loop()
        jobs = [
            loop.run_in_executor(self._pool, work, data, f"images[{index}]")
            for index, data in enumerate(images)
        ]
        results: list[ResultT] = []
        failures: list[BaseException] = []
        for result in await asyncio.gather(*jobs, return_exceptions=True):
            if isinstance(result, BaseException):
                failures.append(result)
            else:
                results.append(result)
        if failures:
            raise failures[0]
        return results
