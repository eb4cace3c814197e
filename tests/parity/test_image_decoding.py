"""Serving and training read the same pixels of a file."""

import io

import numpy as np
import pytest
from PIL import Image

from model.image_codec import ImageLimits
from service.images import ImagePreparer, SizeRule
from training.data.shards.sample import decode_tensor

SIDE = 28
RULE = SizeRule(resolution=SIDE, fit="squash", patch_size=14, multiple=14)
PREPARER = ImagePreparer(ImageLimits(max_bytes=10**6, max_pixels=10**6), max_patches=100)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def rotated() -> tuple[Image.Image, dict[str, object]]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return NOISE, {"exif": exif}


def transparent() -> tuple[Image.Image, dict[str, object]]:
    image = NOISE.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((SIDE, SIDE)))
    return image, {}


def sixteen_bits() -> tuple[Image.Image, dict[str, object]]:
    samples = np.random.default_rng(1).integers(0, 2**16, (SIDE, SIDE)).astype(np.uint16)
    return Image.fromarray(samples), {}


def transparent_palette() -> tuple[Image.Image, dict[str, object]]:
    return NOISE.quantize(8), {"transparency": 0}


@pytest.mark.parametrize(
    ("image", "file_format"),
    [
        (rotated(), "JPEG"),
        (rotated(), "PNG"),
        (rotated(), "WEBP"),
        (transparent(), "PNG"),
        (transparent(), "WEBP"),
        (sixteen_bits(), "PNG"),
        (transparent_palette(), "PNG"),
    ],
)
def test_serving_and_training_read_the_same_pixels(
    image: tuple[Image.Image, dict[str, object]], file_format: str
) -> None:
    stream = io.BytesIO()
    pixels, options = image
    pixels.save(stream, file_format, **options)
    served = PREPARER.prepare(stream.getvalue(), [RULE], param="images[0]")[0]
    trained_HW3 = decode_tensor(stream.getvalue()).permute(1, 2, 0).numpy()
    assert served.size_hw == (SIDE, SIDE)
    np.testing.assert_array_equal(trained_HW3, served.pixels_3HW.transpose(1, 2, 0))
