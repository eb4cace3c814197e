"""Images of a request to model inputs: size from the header, then decode and scale.

Shape legend: H W pixels.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, Self, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.image_codec import (
    ImageError,
    ImageLimits,
    ImageTooLarge,
    LoadedImage,
    SizeMap,
    load_image,
    read_header,
)
from model.outlines import make_guide
from model.preprocess import Fit, Scaling, scale_image, split_planes, target_size
from service.errors import InvalidRequest, RequestTooLarge
from service.messages import ImageInput

JpegDecode = Literal["fast", "exact"]
# The fast JPEG decoder keeps sides of at least this multiple of the model input. With less, details
# appear that exact decoding averages away.
REDUCED_FACTOR: Final = 2
# Side of a patch of the released models, for which limits in patches are made. A larger one counts
# as one for each 144 of its pixels: an image of 3,200 patches of 32 x 32 took 600 MiB, and eight of
# 784 took the default model in float32 to 511 MiB, without the patches in the answer.
USUAL_PATCH: Final = 14
COUNTED_PIXELS: Final = 12 * 12
# Bytes of a patch that waits for a lane, for patches of up to 32 x 32 pixels.
QUEUED_PATCH_BYTES: Final = 3 * 32 * 32
FINER_FACTOR: Final = 1.6
# Images of the largest size in one request, or as many pixels of smaller ones.
LARGEST_AT_ONCE: Final = 8


@contextmanager
def image_errors(param: str) -> Iterator[None]:
    """Turn the decoder's errors into the client's error about the field `param`."""
    try:
        yield
    except ImageTooLarge as error:
        raise InvalidRequest(f"{param}: {error}.", code="image_too_large", param=param) from error
    except ImageError as error:
        raise InvalidRequest(f"{param}: {error}.", code="invalid_image", param=param) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Overlapping squares of `side` pixels, `stride` pixels apart, that cover an image.

    The last window of each row and column ends at the image's edge.

    Source: google-deepmind/tips, zero-shot segmentation notebook: windows of 448 pixels, 336 apart,
    on images whose short side is 448.
    """

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
            ValueError: The image is smaller than a window.
        """
        height, width = size_hw
        return [(top, left) for top in self._starts(height) for left in self._starts(width)]

    def count(self, size_hw: tuple[int, int]) -> int:
        """Number of windows of an image; see `corners`."""
        return self._count(size_hw[0]) * self._count(size_hw[1])

    def _starts(self, length: int) -> list[int]:
        return [min(i * self.stride, length - self.side) for i in range(self._count(length))]

    def _count(self, length: int) -> int:
        if length < self.side:
            raise ValueError(f"a window of {self.side} pixels does not fit into {length}")
        return 1 + -(-(length - self.side) // self.stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRule:
    """How the model's input size follows from an image's size, for one model and one request.

    With `windows`, the model sees windows of the scaled image instead of the image. With
    `max_patches`, an image of more patches at the resolution gets a smaller one.
    """

    resolution: int
    fit: Fit
    patch_size: int
    multiple: int
    windows: Windows | None = None
    scaling: Scaling = "bilinear"
    max_patches: int | None = None

    def target_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width to scale an image to."""
        height, width = size_hw
        if self.windows is not None and self.fit == "aspect":
            # Windows cover any long side, so the proportions need no rounding to patches.
            short = min(height, width)
            return height * self.resolution // short, width * self.resolution // short
        resolution = self.resolution
        while True:
            target_hw = target_size(
                height, width, resolution=resolution, fit=self.fit, multiple=self.multiple
            )
            fits = self.max_patches is None or self.num_patches(target_hw) <= self.max_patches
            if fits or resolution == self.multiple:
                return target_hw
            resolution -= self.multiple

    def num_patches(self, scaled_hw: tuple[int, int]) -> int:
        """Patches that the model sees of a scaled image, summed over its windows."""
        if self.windows is None:
            return scaled_hw[0] * scaled_hw[1] // self.patch_size**2
        return self.windows.count(scaled_hw) * (self.windows.side // self.patch_size) ** 2

    def parts(self, pixels_3HW: NDArray[Any]) -> list[NDArray[Any]]:
        """Model inputs of a scaled image: the image itself, or each of its windows."""
        if self.windows is None:
            return [pixels_3HW]
        side = self.windows.side
        corners = self.windows.corners((pixels_3HW.shape[1], pixels_3HW.shape[2]))
        return [pixels_3HW[:, top : top + side, left : left + side] for top, left in corners]


@dataclass(slots=True, kw_only=True)
class PreparedImage:
    """Pixels [3, H, W], and height and width of the upright original.

    `guide_3YX` has the colours for `model.outlines`; None if not asked for, or of float32.

    The pixels are uint8, which the lane makes the model's input of (`model.preprocess.as_planes`):
    as float32, 655 images of 320 x 320 that waited for a lane took 800 MB. A caller's float32
    pixels stay as they are.
    """

    pixels_3HW: NDArray[np.float32] | NDArray[np.uint8]
    size_hw: tuple[int, int]
    guide_3YX: NDArray[np.uint8] | None = None


class ImagePreparer:
    """Reads and scales images: work for a thread pool. Thread-safe, has no state.

    An image is an encoded file, uint8 [H, W, 3] of any size, or float32 [3, H, W] that goes to the
    model unscaled. `service.validation` has checked the shapes of arrays.
    """

    def __init__(
        self, limits: ImageLimits, *, max_patches: int, jpeg_decode: JpegDecode = "fast"
    ) -> None:
        self._limits = limits
        self._max_patches = max_patches
        self._max_pixels = LARGEST_AT_ONCE * max_patches * USUAL_PATCH**2
        self._jpeg_decode = jpeg_decode

    @property
    def max_decoding_bytes(self) -> int:
        """Memory that decoding an image may take."""
        return self._limits.max_decoding_bytes

    def _array_hw(self, image: NDArray[Any], param: str) -> tuple[int, int]:
        height, width = image.shape[1:] if _is_model_input(image) else image.shape[:2]
        if height * width > self._limits.max_pixels:
            raise InvalidRequest(
                f"{param}: the image has {width} x {height} pixels, at most "
                f"{self._limits.max_pixels} allowed; send a smaller one.",
                code="image_too_large",
                param=param,
            )
        return height, width

    def check_pixels(self, sizes_hw: Sequence[tuple[int, int]], rules: Sequence[SizeRule]) -> None:
        """Check the pixels of all images of a request together, as they wait for a lane.

        Args:
            sizes_hw: Height and width of each image.
            rules: The sizes at which the model sees them, the usual one first.

        Raises:
            RequestTooLarge: There are too many.
        """
        num_pixels = sum(
            math.prod(rule.target_hw(size_hw)) for rule in rules for size_hw in sizes_hw
        )
        if num_pixels > self._max_pixels:
            raise RequestTooLarge(
                f"images: at resolution {rules[0].resolution} they are {num_pixels} pixels "
                f"together, at most {self._max_pixels} allowed. Send fewer at once, or lower the "
                "resolution."
            )

    def max_patches(self, rule: SizeRule) -> int:
        """Most patches of an image; larger patches have more pixels each."""
        if rule.patch_size <= USUAL_PATCH:
            return self._max_patches
        return self._max_patches * COUNTED_PIXELS // rule.patch_size**2

    def finer(self, rule: SizeRule, max_resolution: int) -> SizeRule:
        """The second size of `quality` `fine`: 1.6 times the resolution, as far as the model goes.

        An image of too many patches at that resolution gets a smaller one.
        """
        resolution = round(FINER_FACTOR * rule.resolution / rule.multiple) * rule.multiple
        return replace(
            rule, resolution=min(resolution, max_resolution), max_patches=self.max_patches(rule)
        )

    def measure(
        self, image: ImageInput, rules: Sequence[SizeRule], *, param: str
    ) -> tuple[tuple[int, int], list[int], int]:
        """What an image takes; of a file only the header is read.

        Returns:
            Height and width; number of patches at each size; and bytes that decoding takes, 0 if
            they are few.

        Raises:
            InvalidRequest: The image is unreadable or too large.
        """
        if isinstance(image, bytes):
            with image_errors(param):
                size_hw, num_bytes = read_header(
                    image, self._limits, reduce_to=self._reduce_to(rules)
                )
        else:
            size_hw, num_bytes = self._array_hw(image, param), 0
        counts = [self._count_patches(image, size_hw, rule, param) for rule in rules]
        return size_hw, counts, num_bytes

    def _count_patches(
        self, image: ImageInput, size_hw: tuple[int, int], rule: SizeRule, param: str
    ) -> int:
        is_scaled = not _is_model_input(image)
        target_hw = rule.target_hw(size_hw) if is_scaled else size_hw
        if rule.windows is not None and is_scaled:
            # The model sees one window at a time; admission bounds how many there are.
            return rule.num_patches(target_hw)
        num_patches = math.prod(target_hw) // rule.patch_size**2
        max_patches = self.max_patches(rule)
        if num_patches > max_patches:
            raise InvalidRequest(
                f"{param}: {size_hw[1]} x {size_hw[0]} pixels at resolution {rule.resolution} are "
                f"{num_patches} patches, at most {max_patches} allowed. Crop the image, "
                "lower the resolution, or use fit squash.",
                code="image_too_large",
                param=param,
            )
        return num_patches

    def prepare(
        self, image: ImageInput, rules: Sequence[SizeRule], *, param: str, has_guide: bool = False
    ) -> list[PreparedImage]:
        """Decode an image, scale it to each size, and take its colours if they are needed.

        Raises:
            InvalidRequest: It is broken, too large, or float32 with values outside [0, 1].
        """
        if isinstance(image, bytes):
            with image_errors(param):
                loaded = load_image(image, self._limits, reduce_to=self._reduce_to(rules))
                return [_prepared(loaded, rule, has_guide=has_guide) for rule in rules]
        size_hw = self._array_hw(image, param)
        if _is_model_input(image):
            copy_3HW = _copy_planes(image, param=param)
            return [PreparedImage(pixels_3HW=copy_3HW, size_hw=size_hw) for _ in rules]
        given = Image.fromarray(np.ascontiguousarray(image, np.uint8))
        loaded = LoadedImage(
            image=given, box=(0, 0, given.width, given.height), size_hw=size_hw, turn=None
        )
        return [_prepared(loaded, rule, has_guide=has_guide) for rule in rules]

    def _reduce_to(self, rules: Sequence[SizeRule]) -> SizeMap | None:
        return None if self._jpeg_decode == "exact" else partial(_reduced_hw, rules)


def _prepared(loaded: LoadedImage, rule: SizeRule, *, has_guide: bool) -> PreparedImage:
    target_hw = loaded.stored_hw(rule.target_hw(loaded.size_hw))
    # Scale first: turning a large photo at full size would cost as much as scaling it.
    scaled = scale_image(loaded.image, target_hw, loaded.box, scaling=rule.scaling)
    upright = loaded.upright(scaled)
    return PreparedImage(
        pixels_3HW=split_planes(upright),
        size_hw=loaded.size_hw,
        guide_3YX=make_guide(upright, rule.patch_size) if has_guide else None,
    )


def _is_model_input(image: ImageInput) -> TypeGuard[NDArray[np.float32]]:
    return isinstance(image, np.ndarray) and image.dtype == np.float32


def _copy_planes(planes_3HW: NDArray[np.float32], *, param: str) -> NDArray[np.float32]:
    """An aligned, contiguous copy, as runtimes need it; values must be in [0, 1]."""
    copy_3HW = np.array(planes_3HW, np.float32, order="C")
    # Written so that NaN fails too.
    if not (copy_3HW.min() >= 0 and copy_3HW.max() <= 1):
        raise InvalidRequest(
            f"{param}: float32 pixels must be in [0, 1]; divide 8-bit values by 255.",
            code="invalid_image",
            param=param,
        )
    return copy_3HW


def _reduced_hw(rules: Sequence[SizeRule], size_hw: tuple[int, int]) -> tuple[int, int]:
    """Least height and width of a reduced JPEG, such that scaling still averages enough pixels."""
    heights, widths = zip(*[rule.target_hw(size_hw) for rule in rules], strict=True)
    return REDUCED_FACTOR * max(heights), REDUCED_FACTOR * max(widths)
