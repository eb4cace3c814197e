"""Encoded or decoded images to model inputs."""

from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, Self, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.preprocess import Fit, prepare_image, scale_image, target_size, to_planes
from service.errors import InvalidRequest
from service.images.codec import ImageLimits, load_image, read_size
from service.messages import ImageInput

# Images that come as pixels and not as files: of any size, or just as the model is to see them.
#
# Their shapes have been checked, by `service.validation`. Shape legend: H W pixels.

Pixels = NDArray[np.uint8] | NDArray[np.float32]


def is_model_input(image: ImageInput) -> TypeGuard[NDArray[np.float32]]:
    """Whether an image is float32 [3, H, W], which is taken as it is."""
    return isinstance(image, np.ndarray) and image.dtype == np.float32


def pixels_size(pixels: Pixels, limits: ImageLimits, *, param: str) -> tuple[int, int]:
    """Height and width.

    Args:
        pixels: uint8 [H, W, 3] or float32 [3, H, W].
        limits: Of which the pixels count.
        param: The field and index of the image, for the error.

    Raises:
        InvalidRequest: It has too many pixels.
    """
    height, width = pixels.shape[1:] if is_model_input(pixels) else pixels.shape[:2]
    if height * width > limits.max_pixels:
        raise InvalidRequest(
            f"{param}: the image has {width} x {height} pixels; at most {limits.max_pixels} are "
            "read. Send a smaller one.",
            code="image_too_large",
            param=param,
        )
    return height, width


def scale_pixels(pixels_HW3: Pixels, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Of uint8 pixels, scaled as a decoded image is: float32 [3, H, W] in [0, 1]."""
    return prepare_image(np.ascontiguousarray(pixels_HW3, np.uint8), size_hw)


def take_planes(planes_3HW: NDArray[np.float32], *, param: str) -> NDArray[np.float32]:
    """A copy, in memory as runtimes want it, of what the model is to see.

    Raises:
        InvalidRequest: A value is outside [0, 1], or not a number.
    """
    copy_3HW = np.array(planes_3HW, np.float32, order="C")
    # Written so that a NaN is refused too.
    if not (copy_3HW.min() >= 0 and copy_3HW.max() <= 1):
        raise InvalidRequest(
            f"{param}: float32 pixels lie in [0, 1]; divide 8-bit values by 255.",
            code="invalid_image",
            param=param,
        )
    return copy_3HW


# Windows over an image: squares that overlap, the last of each row and column at its end.
#
# Source: google-deepmind/tips, zero-shot segmentation notebook: windows of 448 pixels, 336 apart,
# on images whose short side is 448.


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Squares of `side` pixels, `stride` pixels apart."""

    side: int
    stride: int

    @classmethod
    def of(cls, side: int) -> Self:
        """Windows that overlap by a quarter."""
        return cls(side=side, stride=max(1, side * 3 // 4))

    def corners(self, size_hw: tuple[int, int]) -> list[tuple[int, int]]:
        """Top and left of every window, row by row; at least one.

        Args:
            size_hw: Height and width of the image, each at least the side of a window.

        Raises:
            ValueError: A window does not fit into the image.
        """
        height, width = size_hw
        return [(top, left) for top in self._starts(height) for left in self._starts(width)]

    def _starts(self, length: int) -> list[int]:
        if length < self.side:
            raise ValueError(f"a window of {self.side} pixels does not fit into {length}")
        count = 1 + -(-(length - self.side) // self.stride)
        return [min(i * self.stride, length - self.side) for i in range(count)]


# From images to what the model sees: of a file the header alone, then decode and scale.
#
# Shape legend: H W pixels.

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
