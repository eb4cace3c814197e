"""PNG files."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from service.outputs.png import ColourType, write_png


@pytest.mark.parametrize("strategy", [zlib.Z_RLE, zlib.Z_DEFAULT_STRATEGY])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size_hw", [(1, 1), (3, 200), (200, 3)])
def test_grey_samples_of_8_and_16_bits_are_written(
    size_hw: tuple[int, int], dtype: type[np.uint8] | type[np.uint16], strategy: int
) -> None:
    most = np.iinfo(dtype).max
    samples_HW1 = np.random.default_rng(0).integers(0, most, (*size_hw, 1), dtype, endpoint=True)
    png = write_png(size_hw, lambda rows: samples_HW1[rows], ColourType.GREY, strategy=strategy)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), samples_HW1[..., 0])


def test_colours_are_written_from_any_memory_layout() -> None:
    samples_HW3 = (
        np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8).transpose(2, 1, 0)
    )
    png = write_png((30, 20), lambda rows: samples_HW3[rows], ColourType.RGB)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), samples_HW3)
