"""From images to what the model sees: of a file the header alone, then decode and scale.

Shape legend: H W pixels.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.preprocess import Fit, scale_image, target_size, to_planes
from service.errors import InvalidRequest
from service.images.image_codec import ImageLimits, load_image, read_size
from service.images.pixels import is_model_input, pixels_size, scale_pixels, take_planes
from service.images.windows import Windows
from service.messages import ImageInput

JpegDecode = Literal["fast", "exact"]

# Of each side, in multiples of what the model sees: with less, details that the exact way averages
# away begin to show. `python -m benchmarks.scaled_decode` measures it.
REDUCED_FACTOR: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRule:
    """How an image's size becomes the model's: in pixels, for one model and one request.

    With `windows` the model sees these of the scaled image, and not the image.
    """

    resolution: int
    fit: Fit
    patch_size: int
    multiple: int
    windows: Windows | None = None

    @property
    def nominal_patches(self) -> int:
        """Patches of a square image."""
        return self.num_patches((self.resolution, self.resolution))

    def target_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width to scale to."""
        height, width = size_hw
        if self.windows is not None and self.fit == "aspect":
            # Windows fit whatever the long side is, so that its proportions are kept to a pixel.
            short = min(height, width)
            return height * self.resolution // short, width * self.resolution // short
        return target_size(
            height, width, resolution=self.resolution, fit=self.fit, multiple=self.multiple
        )

    def num_patches(self, scaled_hw: tuple[int, int]) -> int:
        """Patches that the model sees of a scaled image, in all windows together."""
        if self.windows is None:
            return scaled_hw[0] * scaled_hw[1] // self.patch_size**2
        num_windows = len(self.windows.corners(scaled_hw))
        return num_windows * (self.windows.side // self.patch_size) ** 2

    def parts(self, pixels_3HW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """What the model is to see of a scaled image: itself, or each window of it."""
        if self.windows is None:
            return [pixels_3HW]
        side = self.windows.side
        corners = self.windows.corners((pixels_3HW.shape[1], pixels_3HW.shape[2]))
        return [pixels_3HW[:, top : top + side, left : left + side] for top, left in corners]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """An image as the model sees it, float32 [3, H, W], and its own height and width, upright."""

    pixels_3HW: NDArray[np.float32]
    size_hw: tuple[int, int]


class ImagePreparer:
    """Reads and scales images. CPU work for a pool; holds nothing, so in any thread."""

    def __init__(
        self, limits: ImageLimits, *, max_patches: int, jpeg_decode: JpegDecode = "fast"
    ) -> None:
        self._limits = limits
        self._max_patches = max_patches
        self._jpeg_decode = jpeg_decode

    def size_hw(self, image: ImageInput, *, param: str) -> tuple[int, int]:
        """Height and width of an image as it is stored, of a file from its header alone.

        Raises:
            InvalidRequest: It is unreadable or too large.
        """
        if isinstance(image, bytes):
            return read_size(image, self._limits, param=param)
        return pixels_size(image, self._limits, param=param)

    def num_patches(self, image: ImageInput, rule: SizeRule, *, param: str) -> int:
        """Patches of an image, of a file from its header alone.

        Raises:
            InvalidRequest: It is unreadable or too large.
        """
        size_hw = self.size_hw(image, param=param)
        target_hw = size_hw if is_model_input(image) else rule.target_hw(size_hw)
        num_patches = target_hw[0] * target_hw[1] // rule.patch_size**2
        if num_patches <= self._max_patches and rule.windows is not None:
            return rule.num_patches(target_hw)
        if num_patches > self._max_patches:
            raise InvalidRequest(
                f"{param}: {size_hw[1]} x {size_hw[0]} pixels at resolution {rule.resolution} are "
                f"{num_patches} patches; at most {self._max_patches} fit. Crop the image, lower "
                "the resolution, or use fit squash.",
                code="image_too_large",
                param=param,
            )
        return num_patches

    def prepare(self, image: ImageInput, rule: SizeRule, *, param: str) -> PreparedImage:
        """Decode and scale an image.

        Raises:
            InvalidRequest: It is broken.
        """
        if isinstance(image, bytes):
            return self._decode(image, rule, param)
        size_hw = pixels_size(image, self._limits, param=param)
        if is_model_input(image):
            planes_3HW = take_planes(image, param=param)
        else:
            planes_3HW = scale_pixels(image, rule.target_hw(size_hw))
        return PreparedImage(pixels_3HW=planes_3HW, size_hw=size_hw)

    def scale(
        self, data: bytes, rule: SizeRule, *, param: str
    ) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Decode and scale a file, but leave it as pixels, of which `prepare` makes the same.

        Returns:
            uint8 [H, W, 3], and the image's own height and width, upright.

        Raises:
            InvalidRequest: It is broken.
        """
        scaled, size_hw = self._scale(data, rule, param)
        return np.asarray(scaled.convert("RGB")), size_hw

    def _decode(self, data: bytes, rule: SizeRule, param: str) -> PreparedImage:
        scaled, size_hw = self._scale(data, rule, param)
        return PreparedImage(pixels_3HW=to_planes(scaled), size_hw=size_hw)

    def _scale(
        self, data: bytes, rule: SizeRule, param: str
    ) -> tuple[Image.Image, tuple[int, int]]:
        loaded = load_image(
            data,
            self._limits,
            param=param,
            reduce_to=None if self._jpeg_decode == "exact" else partial(_reduced_hw, rule),
        )
        target_hw = loaded.stored_hw(rule.target_hw(loaded.size_hw))
        # Small first and then turned: of a large photo the turning would cost as much again.
        scaled = loaded.upright(scale_image(loaded.image, target_hw, loaded.box))
        return scaled, loaded.size_hw


def _reduced_hw(rule: SizeRule, size_hw: tuple[int, int]) -> tuple[int, int]:
    """Pixels that a JPEG's decoder must leave, for scaling to average enough of them."""
    height, width = rule.target_hw(size_hw)
    return REDUCED_FACTOR * height, REDUCED_FACTOR * width
