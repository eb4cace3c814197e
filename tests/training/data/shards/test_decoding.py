"""Decoding: upright RGB within limits, and a reason for whatever is refused."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.shards.decoding import ImageLimits, decode_image
from training.data.shards.sample import BadSample

LIMITS = ImageLimits()


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """An encoded image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_three_kinds_are_read(encode: Callable[..., bytes], kind: str) -> None:
    image_3HW = decode_image(encode(3, kind=kind), LIMITS)
    assert image_3HW.shape == (3, 30, 40)
    assert image_3HW.dtype == torch.uint8
    colour = image_3HW.float().mean((1, 2))
    torch.testing.assert_close(colour, torch.tensor([27.0, 15.0, 200.0]), atol=3, rtol=0)


def test_a_photo_taken_sideways_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image_3HW = decode_image(saved(Image.new("RGB", (40, 30)), "JPEG", exif=exif), LIMITS)
    assert image_3HW.shape == (3, 40, 30)


def test_what_is_transparent_is_white() -> None:
    clear = decode_image(saved(Image.new("RGBA", (20, 20), (255, 0, 0, 0)), "PNG"), LIMITS)
    assert (clear == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "LA", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert decode_image(saved(Image.new(mode, (20, 20)), kind), LIMITS).shape == (3, 20, 20)


def test_sixteen_bits_are_reduced_to_eight() -> None:
    image = Image.fromarray(np.full((20, 20), 0x8000, np.uint16))
    assert (decode_image(saved(image, "PNG"), LIMITS) == 128).all()


def test_a_large_jpeg_is_decoded_as_small_as_it_may_be(encode: Callable[..., bytes]) -> None:
    large = encode(1, size=(400, 320), kind="JPEG")
    assert decode_image(large, LIMITS).shape == (3, 320, 400)
    assert decode_image(large, LIMITS, wanted_side=100).shape == (3, 160, 200)
    assert decode_image(large, LIMITS, wanted_side=300).shape == (3, 320, 400)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ImageLimits(max_bytes=20), "bytes"),
        (ImageLimits(max_pixels=1000), "40 x 30 pixels, over"),
        (ImageLimits(min_side=31), "a side under 31"),
    ],
)
def test_limits_are_kept(encode: Callable[..., bytes], limits: ImageLimits, message: str) -> None:
    with pytest.raises(BadSample, match=message):
        decode_image(encode(0), limits)


def test_a_bomb_is_refused_by_its_header(encode: Callable[..., bytes]) -> None:
    header = bytearray(encode(0))
    header[16:24] = (60000).to_bytes(4, "big") * 2  # a PNG's width and height
    with pytest.raises(BadSample):
        decode_image(bytes(header), LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_broken(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    whole = saved(Image.fromarray(noise), kind)
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_image(whole[: len(whole) // 2], LIMITS)


@pytest.mark.parametrize("data", [b"", b"not an image", b"GIF89a" + b"\0" * 40])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_image(data, LIMITS)


def test_limits_that_let_nothing_pass_are_refused() -> None:
    with pytest.raises(ValueError, match="limits"):
        ImageLimits(max_pixels=10)
