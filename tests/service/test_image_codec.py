"""Every kind of picture becomes upright RGB; everything else becomes the caller's error."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import InvalidRequest
from service.image_codec import FORMATS, ImageLimits, decode_image, read_size

LIMITS = ImageLimits(max_bytes=2_000_000, max_pixels=1_000_000)
Encode = Callable[..., bytes]


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares any size."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"\0")
    chunks = [
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
        for c in (ihdr, idat, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def save(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def decode(data: bytes) -> "np.typing.NDArray[np.uint8]":
    return decode_image(data, LIMITS, param="images[2]")


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_is_read(encode_image: Encode, file_format: str) -> None:
    pixels_HW3 = decode(encode_image(file_format, size=(40, 30)))
    assert pixels_HW3.shape == (30, 40, 3)
    assert pixels_HW3.dtype == np.uint8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"])
def test_every_mode_is_read(mode: str) -> None:
    grey = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (8, 1))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(grey.astype(np.int32) * 257)
    else:
        image = Image.fromarray(grey).convert(mode)
    pixels_HW3 = decode(save(image, "TIFF" if mode == "I" else "PNG"))
    tolerance = 255 if mode == "1" else 3
    assert np.abs(pixels_HW3[..., 0].astype(int) - grey).max() <= tolerance
    assert (pixels_HW3[..., 0] == pixels_HW3[..., 2]).all()


@pytest.mark.parametrize(("file_format", "mode"), [("JPEG", "CMYK"), ("TIFF", "F"), ("JPEG", "L")])
def test_modes_of_other_formats_are_read(file_format: str, mode: str) -> None:
    image = Image.new("RGB", (16, 8), (200, 200, 200)).convert(mode)
    assert np.abs(decode(save(image, file_format)).astype(int) - 200).max() <= 3


def test_floats_from_0_to_1_are_stretched() -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32))
    assert decode(save(image, "TIFF"))[0, :, 0].tolist() == [0, 127, 255, 0]


def test_transparent_parts_are_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    assert decode(save(image))[0].tolist() == [[255, 255, 255], [255, 0, 0]]


def test_the_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    assert decode(save(image, transparency=0))[0].tolist() == [[255, 255, 255], [255, 0, 0]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste("red", (0, 0, 16, 8))
    # The transposition that undoes the one that the tag asks for.
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright
    if orientation in inverse:
        stored = upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels_HW3 = decode(save(stored, file_format, exif=exif.tobytes()))
    assert pixels_HW3.shape == (16, 32, 3)
    assert pixels_HW3[4, 8, 0] > 200
    assert pixels_HW3[12, 24, 0] < 50


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data)[0, 0].tolist() == [255, 0, 0]


def test_a_huge_picture_is_refused_by_its_header(encode_image: Encode) -> None:
    for read in (read_size, decode_image):
        with pytest.raises(InvalidRequest, match="20000 x 20000 pixels") as caught:
            read(png_header(20_000, 20_000), LIMITS, param="images[2]")
        assert (caught.value.code, caught.value.param) == ("image_too_large", "images[2]")


def test_a_long_file_is_refused_unread() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_size(b"x" * (LIMITS.max_bytes + 1), LIMITS, param="images[2]")
    assert caught.value.code == "image_too_large"


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"<svg/>"])
def test_what_is_no_picture_is_the_callers_error(data: bytes) -> None:
    for read in (read_size, decode_image):
        with pytest.raises(InvalidRequest) as caught:
            read(data, LIMITS, param="images[2]")
        assert (caught.value.code, caught.value.param) == ("invalid_image", "images[2]")


def test_a_truncated_picture_has_a_size_and_no_pixels(encode_image: Encode) -> None:
    data = encode_image("JPEG", size=(400, 300))[:2000]
    assert read_size(data, LIMITS, param="images[2]") == (300, 400)
    with pytest.raises(InvalidRequest) as caught:
        decode(data)
    assert caught.value.code == "invalid_image"


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    file_format=st.sampled_from(FORMATS),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_decode_or_are_the_callers_error(
    encode_image: Encode, file_format: str, edits: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(encode_image(file_format))
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    try:
        pixels_HW3 = decode(bytes(data[: max(1, int(cut * 2 * len(data)))]))
    except InvalidRequest:
        return
    assert pixels_HW3.ndim == 3
    assert pixels_HW3.dtype == np.uint8
