"""Images as the model sees them, whatever way a JPEG is decoded and however it lies."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.preprocess import prepare_image
from service.images.codec import ImageLimits, decode_image
from service.images.preparation import ImagePreparer, JpegDecode, SizeRule

LIMITS = ImageLimits(max_bytes=2_000_000, max_pixels=2_000_000)
SQUASH = SizeRule(resolution=56, fit="squash", patch_size=14, multiple=14)
ASPECT = SizeRule(resolution=56, fit="aspect", patch_size=14, multiple=14)
GREY_LEVEL = 1 / 255


def photo(size: tuple[int, int]) -> Image.Image:
    """Smooth colours with a sharp bright disc, not symmetrical in any way."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels_HW3 = np.stack([255 * x, 255 * y * x, 120 + 100 * np.sin(9 * y)], axis=-1)
    pixels_HW3[(x - 0.3) ** 2 + (y - 0.6) ** 2 < 0.04] = (250, 240, 10)
    return Image.fromarray(pixels_HW3.astype(np.uint8))


def encode(image: Image.Image, file_format: str = "JPEG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, file_format, exif=exif.tobytes(), quality=92)
    return stream.getvalue()


def prepare(data: bytes, rule: SizeRule, jpeg_decode: JpegDecode) -> NDArray[np.float32]:
    preparer = ImagePreparer(LIMITS, max_patches=1000, jpeg_decode=jpeg_decode)
    return preparer.prepare(data, rule, param="images[0]").pixels_3HW


@pytest.mark.parametrize("rule", [SQUASH, ASPECT])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("file_format", "size"), [("JPEG", (300, 200)), ("PNG", (123, 77))])
def test_the_exact_way_is_decoding_turning_and_scaling(
    file_format: str, size: tuple[int, int], orientation: int, rule: SizeRule
) -> None:
    data = encode(photo(size), file_format, orientation)
    upright_HW3 = decode_image(data, LIMITS, param="images[0]")
    expected = prepare_image(upright_HW3, rule.target_hw(upright_HW3.shape[:2]))
    prepared = prepare(data, rule, "exact")
    assert prepared.shape == expected.shape
    # It is scaled before it is turned; each direction rounds once to whole grey levels.
    assert np.abs(prepared - expected).max() <= 1.01 * GREY_LEVEL


@pytest.mark.parametrize("rule", [SQUASH, ASPECT])
@pytest.mark.parametrize("orientation", range(1, 9))
# Sides that 8 does not divide: a reduced image then ends within its last pixels.
@pytest.mark.parametrize("size", [(1007, 781), (452, 355), (230, 227)])
def test_the_fast_way_is_near(size: tuple[int, int], orientation: int, rule: SizeRule) -> None:
    data = encode(photo(size), "JPEG", orientation)
    exact, fast = prepare(data, rule, "exact"), prepare(data, rule, "fast")
    assert fast.shape == exact.shape
    assert np.abs(fast - exact).max() <= 16 * GREY_LEVEL
    assert np.abs(fast - exact).mean() <= 0.6 * GREY_LEVEL


def test_the_fast_way_tells_the_true_size() -> None:
    data = encode(photo((1007, 781)), "JPEG", 6)
    preparer = ImagePreparer(LIMITS, max_patches=1000)
    assert preparer.prepare(data, ASPECT, param="images[0]").size_hw == (1007, 781)


def test_small_jpegs_are_the_same_either_way() -> None:
    data = encode(photo((200, 150)))
    np.testing.assert_array_equal(prepare(data, SQUASH, "fast"), prepare(data, SQUASH, "exact"))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P"])
def test_grey_images_have_three_equal_planes(mode: str) -> None:
    stream = io.BytesIO()
    Image.linear_gradient("L").convert(mode).save(stream, "PNG")
    planes = prepare(stream.getvalue(), SQUASH, "exact")
    np.testing.assert_array_equal(planes[0], planes[1])
    np.testing.assert_array_equal(planes[0], planes[2])
    assert planes[0, 0].mean() < 0.1
    assert planes[0, -1].mean() > 0.9
