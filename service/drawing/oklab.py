"""OKLab (B. Ottosson, 2020), in which distance is how different colours look.

Shape legend: C colours.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

RGB_TO_LMS: Final = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LMS_TO_LAB: Final = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
LMS_TO_RGB: Final = np.linalg.inv(RGB_TO_LMS)
LAB_TO_LMS: Final = np.linalg.inv(LMS_TO_LAB)


def to_oklab(rgb_C3: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Lightness from 0 to 1, green to red, and blue to yellow, of sRGB colours."""
    value_C3 = rgb_C3 / 255
    linear_C3 = np.where(value_C3 > 0.04045, ((value_C3 + 0.055) / 1.055) ** 2.4, value_C3 / 12.92)
    lab_C3: NDArray[np.float64] = np.cbrt(linear_C3 @ RGB_TO_LMS.T) @ LMS_TO_LAB.T
    return lab_C3


def to_linear_rgb(lab_C3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear sRGB of OKLab colours; what a screen cannot show lies outside 0 to 1."""
    linear_C3: NDArray[np.float64] = (lab_C3 @ LAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T
    return linear_C3


def to_srgb(linear_C3: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colours as sRGB has them, of linear ones, each channel cut to what a screen can show."""
    cut_C3 = np.clip(linear_C3, 0, 1)
    value_C3 = np.where(cut_C3 > 0.0031308, 1.055 * cut_C3 ** (1 / 2.4) - 0.055, 12.92 * cut_C3)
    rgb_C3: NDArray[np.uint8] = np.rint(value_C3 * 255).astype(np.uint8)
    return rgb_C3
