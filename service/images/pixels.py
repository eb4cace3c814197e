"""Images that come as pixels and not as files: of any size, or just as the model is to see them.

Their shapes have been checked, by `service.validation`. Shape legend: H W pixels.
"""

from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from model.preprocess import prepare_image
from service.errors import InvalidRequest
from service.images.image_codec import ImageLimits
from service.messages import ImageInput

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
