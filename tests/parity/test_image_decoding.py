"""Serving, training and int8 calibration see the same pixels of the same file."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.export.calibration import read_images
from model.image_codec import ImageLimits
from service.images import ImagePreparer, SizeRule
from training.data.shards.decoding import DEFAULT_LIMITS, decode_tensor

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
    ("image", "suffix"),
    [
        (rotated(), ".jpg"),
        (rotated(), ".png"),
        (rotated(), ".webp"),
        (transparent(), ".png"),
        (transparent(), ".webp"),
        (sixteen_bits(), ".png"),
        (transparent_palette(), ".png"),
    ],
)
def test_the_three_readers_of_images_agree(
    tmp_path: Path, image: tuple[Image.Image, dict[str, object]], suffix: str
) -> None:
    path = tmp_path / f"image{suffix}"
    stream = io.BytesIO()
    pixels, options = image
    file_format = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[suffix]
    pixels.save(stream, file_format, **options)
    path.write_bytes(stream.getvalue())
    served_HW3, size_hw = PREPARER.scale(stream.getvalue(), RULE, param="images[0]")
    trained_HW3 = decode_tensor(stream.getvalue(), DEFAULT_LIMITS).permute(1, 2, 0).numpy()
    (calibrated_HW3,) = read_images(tmp_path)
    assert size_hw == (SIDE, SIDE)
    np.testing.assert_array_equal(served_HW3, calibrated_HW3)
    np.testing.assert_array_equal(trained_HW3, calibrated_HW3)


def test_a_broken_calibration_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_images(tmp_path)
