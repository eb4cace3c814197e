"""Images of a request become model inputs, with the right sizes and the client's errors."""

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.image_codec import ImageLimits, decode_image
from model.preprocess import as_planes, prepare_image, scale_image
from service.errors import InvalidRequest
from service.images import QUEUED_PATCH_BYTES, ImagePreparer, JpegDecode, SizeRule, Windows
from service.lanes.lane import collate
from service.lanes.work import Bucket

LIMITS = ImageLimits(max_bytes=2_000_000, max_pixels=2_000_000)
SQUASH = SizeRule(resolution=56, fit="squash", patch_size=14, multiple=14)
ASPECT = SizeRule(resolution=56, fit="aspect", patch_size=14, multiple=14)
PREPARER = ImagePreparer(LIMITS, max_patches=64)
NOISE_HW3 = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
GREY_LEVEL = 1 / 255


def photo(size: tuple[int, int]) -> Image.Image:
    """Smooth colours with a sharp bright disc, without any symmetry."""
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


def prepare(data: bytes, rule: SizeRule, jpeg_decode: JpegDecode) -> NDArray[Any]:
    preparer = ImagePreparer(LIMITS, max_patches=1000, jpeg_decode=jpeg_decode)
    return as_planes(preparer.prepare(data, [rule], param="images[0]")[0].pixels_3HW)


@pytest.mark.parametrize("rule", [SQUASH, ASPECT])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("file_format", "size"), [("JPEG", (300, 200)), ("PNG", (123, 77))])
def test_exact_preparation_is_decoding_then_turning_then_scaling(
    file_format: str, size: tuple[int, int], orientation: int, rule: SizeRule
) -> None:
    data = encode(photo(size), file_format, orientation)
    upright_HW3 = decode_image(data, LIMITS)
    expected = prepare_image(upright_HW3, rule.target_hw(upright_HW3.shape[:2]))
    prepared = prepare(data, rule, "exact")
    assert prepared.shape == expected.shape
    # It is scaled before it is turned; each direction rounds once to whole grey levels.
    assert np.abs(prepared - expected).max() <= 1.01 * GREY_LEVEL


@pytest.mark.parametrize("rule", [SQUASH, ASPECT])
# Sides that 8 does not divide: the content of a reduced image ends within its last pixels.
@pytest.mark.parametrize(
    ("size", "orientation"),
    [((1007, 781), 1), ((230, 227), 1), *(((452, 355), turned) for turned in range(1, 9))],
)
def test_fast_preparation_is_close_to_exact(
    size: tuple[int, int], orientation: int, rule: SizeRule
) -> None:
    data = encode(photo(size), "JPEG", orientation)
    exact, fast = prepare(data, rule, "exact"), prepare(data, rule, "fast")
    full_hw = size if orientation > 4 else size[::-1]
    assert PREPARER.prepare(data, [rule], param="images[0]")[0].size_hw == full_hw
    assert fast.shape == exact.shape
    assert np.abs(fast - exact).max() <= 16 * GREY_LEVEL
    assert np.abs(fast - exact).mean() <= 0.6 * GREY_LEVEL


def test_uint8_pixels_are_prepared_as_a_file_of_them() -> None:
    stream = io.BytesIO()
    Image.fromarray(NOISE_HW3).save(stream, "PNG")
    as_file = PREPARER.prepare(stream.getvalue(), [ASPECT], param="images[0]")[0]
    as_pixels = PREPARER.prepare(NOISE_HW3, [ASPECT], param="images[0]")[0]
    np.testing.assert_array_equal(as_file.pixels_3HW, as_pixels.pixels_3HW)
    assert as_file.size_hw == as_pixels.size_hw == (40, 60)
    assert PREPARER.measure(NOISE_HW3, [ASPECT], param="")[1] == [4 * 6]


@pytest.mark.parametrize(("image_format", "most_levels"), [("PNG", 0), ("JPEG", 4)])
def test_an_image_at_two_sizes_is_what_it_is_at_each(image_format: str, most_levels: int) -> None:
    """A JPEG is decoded large enough for both, so the smaller one may be a little sharper."""
    data = encode(photo((640, 480)), image_format)
    preparer = ImagePreparer(LIMITS, max_patches=256)
    rules = [ASPECT, replace(ASPECT, resolution=112)]
    both = preparer.prepare(data, rules, param="", has_guide=True)
    _, counts, num_bytes = preparer.measure(data, rules, param="")
    for rule, image, count in zip(rules, both, counts, strict=True):
        (alone,) = preparer.prepare(data, [rule], param="", has_guide=True)
        (expected,), least_bytes = preparer.measure(data, [rule], param="")[1:]
        assert (count, image.size_hw) == (expected, alone.size_hw)
        assert num_bytes >= least_bytes
        assert image.guide_3YX is not None
        difference = image.pixels_3HW.astype(np.int64) - alone.pixels_3HW
        assert np.abs(difference).mean() <= most_levels


@pytest.mark.parametrize(("patch_size", "num_allowed"), [(14, 64), (16, 36), (32, 9)])
def test_large_patches_count_by_their_pixels(patch_size: int, num_allowed: int) -> None:
    def measured(side: int) -> int:
        rule = SizeRule(resolution=side, fit="squash", patch_size=patch_size, multiple=patch_size)
        return PREPARER.measure(NOISE_HW3, [rule], param="images[0]")[1][0]

    side = math.isqrt(num_allowed) * patch_size
    assert measured(side) == num_allowed
    with pytest.raises(InvalidRequest, match=f"patches, at most {num_allowed} allowed"):
        measured(side + patch_size)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_waits_for_its_lane_with_8_bits_a_pixel(mode: str) -> None:
    image = photo((123, 77)).convert(mode)
    prepared = PREPARER.prepare(encode(image, "PNG"), [ASPECT], param="")[0].pixels_3HW
    assert prepared.dtype == np.uint8
    expected = np.asarray(scale_image(image, (56, 84)).convert("RGB")).transpose(2, 0, 1) / 255
    for num_images in (1, 2):
        (batch_B3HW,) = collate(Bucket("image", (56, 84)), [prepared] * num_images)
        assert batch_B3HW.flags.c_contiguous
        assert batch_B3HW.dtype == np.uint8
        for planes_3HW in as_planes(batch_B3HW):
            np.testing.assert_array_equal(planes_3HW, expected.astype(np.float32))


@pytest.mark.parametrize("patch_size", [14, 32])
def test_an_image_that_waits_is_within_the_bytes_of_its_patches(patch_size: int) -> None:
    rule = SizeRule(resolution=224, fit="aspect", patch_size=patch_size, multiple=patch_size)
    data = encode(photo((123, 77)), "PNG")
    preparer = ImagePreparer(LIMITS, max_patches=4096)
    _, (num_patches,), _ = preparer.measure(data, [rule], param="")
    num_bytes = preparer.prepare(data, [rule], param="")[0].pixels_3HW.nbytes
    assert num_bytes <= num_patches * QUEUED_PATCH_BYTES


def test_float32_pixels_go_to_the_model_unscaled() -> None:
    planes_3HW = np.random.default_rng(0).random((3, 42, 28), dtype=np.float32)
    prepared = PREPARER.prepare(planes_3HW, [ASPECT], param="images[0]")[0]
    np.testing.assert_array_equal(prepared.pixels_3HW, planes_3HW)
    assert prepared.pixels_3HW is not planes_3HW
    assert prepared.size_hw == (42, 28)
    assert PREPARER.measure(planes_3HW, [ASPECT], param="")[1] == [6]


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_float32_values_outside_0_to_1_are_refused(value: float) -> None:
    planes_3HW = np.zeros((3, 14, 14), np.float32)
    planes_3HW[1, 2, 3] = value
    with pytest.raises(InvalidRequest, match=r"images\[2\].*\[0, 1\]"):
        PREPARER.prepare(planes_3HW, [ASPECT], param="images[2]")


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (np.zeros((1, 2_000_001, 3), np.uint8), "image_too_large"),
        (np.zeros((3, 14 * 65, 14), np.float32), "image_too_large"),
        (b"x" * 2_000_001, "image_too_large"),
        (b"no image", "invalid_image"),
    ],
)
def test_a_refused_image_is_the_clients_error(image: bytes, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        PREPARER.measure(image, [ASPECT], param="images[2]")
    assert (caught.value.code, caught.value.param) == (code, "images[2]")
    assert caught.value.message.startswith("images[2]: ")


NOTEBOOK = Windows.of(448)


def test_windows_are_those_of_the_notebook() -> None:
    assert (NOTEBOOK.side, NOTEBOOK.stride) == (448, 336)
    assert NOTEBOOK.corners((448, 448)) == [(0, 0)]
    assert NOTEBOOK.corners((448, 449)) == [(0, 0), (0, 1)]
    assert NOTEBOOK.corners((448, 784)) == [(0, 0), (0, 336)]
    assert NOTEBOOK.corners((448, 785)) == [(0, 0), (0, 336), (0, 337)]
    assert NOTEBOOK.corners((900, 448)) == [(0, 0), (336, 0), (452, 0)]
    assert len(NOTEBOOK.corners((1000, 1000))) == 9
