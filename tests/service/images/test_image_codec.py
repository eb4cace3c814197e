"""Every kind of image becomes upright RGB; everything else becomes the caller's error."""

import base64
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
from service.images.codec import FORMATS, ImageLimits, decode_image, load_image, read_size

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


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [
        *((file_format, "CMYK") for file_format in ("JPEG", "TIFF")),
        *(("TIFF", mode) for mode in ("RGBX", "YCbCr", "LAB", "RGBA", "RGB")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
        ("JPEG", "YCbCr"),
        ("BMP", "RGB"),
    ],
)
def test_modes_of_colour_are_read(file_format: str, mode: str) -> None:
    colour = (200, 120, 60)
    image = Image.new("RGB", (16, 8), colour).convert(mode)
    assert np.abs(decode(save(image, file_format)).astype(int) - colour).max() <= 5


@pytest.mark.parametrize("mode", ["L", "LA", "F", "I", "I;16", "I;16B"])
def test_modes_of_grey_are_read_from_tiff(mode: str) -> None:
    value: float = {"F": 0.5, "L": 128, "LA": 128}.get(mode, 32768)
    if mode == "I;16B":
        image = Image.frombytes(mode, (16, 8), np.full((8, 16), value, ">u2").tobytes())
    elif mode == "LA":
        image = Image.new("L", (16, 8), value).convert(mode)
    else:
        image = Image.new(mode, (16, 8), value)
    assert np.abs(decode(save(image, "TIFF")).astype(int) - 128).max() <= 1


# Four colours in an image of 24 x 16, progressive; arithmetic coding, which Pillow cannot write.
ARITHMETIC_JPEG = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV00jdC1Ox*G1Ox;H1qB8N3<w7Y2L}%e3keJn4-yg)4-pX)791B76dDx~5f~vD8XX"
    "-UA0HDJA|xUnBpe<e9{<|_LjeT^1qTKP4hRSi9uyH29v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9"
    "v&VZ9v&VZ9v=V601*fP5C9kh0TBQK5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zfIPiZx0&lmO9_sPf@IjPe=Yqi1"
    "VCtv{A8>E_YIDKII+JehoDH%IDjh%=-xD9KOjQ`m"
)


def test_arithmetic_coding_is_read() -> None:
    pixels_HW3 = decode(ARITHMETIC_JPEG)
    assert pixels_HW3.shape == (16, 24, 3)
    assert pixels_HW3[3, 4].tolist() == [46, 211, 91]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_progressive_and_subsampled_jpeg_is_read(progressive: bool, subsampling: int) -> None:
    image = Image.linear_gradient("L").resize((50, 40)).convert("RGB")
    data = save(image, "JPEG", progressive=progressive, subsampling=subsampling, quality=95)
    assert np.abs(decode(data).astype(int) - np.asarray(image)).max() <= 8


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


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_counts(file_format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    data = save(frames[0], file_format, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as animation:
        assert getattr(animation, "n_frames", 1) == 3
    assert np.abs(decode(data)[0, 0].astype(int) - (255, 0, 0)).max() <= 3


def halves(size_hw: tuple[int, int]) -> tuple[int, int]:
    return size_hw[0] // 2, size_hw[1] // 2


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_reduced_as_far_as_allowed(progressive: bool, mode: str) -> None:
    image = Image.linear_gradient("L").resize((333, 250)).convert(mode)
    data = save(image, "JPEG", progressive=progressive)
    for least_hw, factor in (((250, 333), 1), ((126, 1), 1), ((125, 100), 2), ((31, 41), 8)):
        loaded = load_image(
            data, LIMITS, param="images[2]", reduce_to={(250, 333): least_hw}.__getitem__
        )
        assert loaded.size_hw == (250, 333)
        assert list(loaded.box) == [0, 0, 333 / factor, 250 / factor]
        assert loaded.image.size == (-(-333 // factor), -(-250 // factor))


def test_of_a_camera_s_several_images_the_first_counts() -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    data = save(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(decode(data)[0, 0].astype(int) - (255, 0, 0)).max() <= 3
    loaded = load_image(data, LIMITS, param="images[2]", reduce_to=halves)
    assert loaded.image.size == (32, 24)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_not_reduced(encode_image: Encode, file_format: str) -> None:
    loaded = load_image(encode_image(file_format), LIMITS, param="images[2]", reduce_to=halves)
    assert loaded.image.size == (40, 30)
    assert list(loaded.box) == [0, 0, 40, 30]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_asked_for_and_told_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.new("RGB", (400, 200)), "JPEG", exif=exif.tobytes())
    asked: list[tuple[int, int]] = []

    def reduce_to(size_hw: tuple[int, int]) -> tuple[int, int]:
        asked.append(size_hw)
        return halves(size_hw)

    loaded = load_image(data, LIMITS, param="images[2]", reduce_to=reduce_to)
    upright_hw = (200, 400) if orientation < 5 else (400, 200)
    assert asked == [upright_hw]
    assert loaded.size_hw == upright_hw
    assert loaded.image.size == (200, 100)
    assert loaded.upright(loaded.image).size == halves(upright_hw)[::-1]
    assert loaded.stored_hw(upright_hw) == (200, 400)


def test_a_huge_image_is_refused_by_its_header(encode_image: Encode) -> None:
    for read in (read_size, decode_image):
        with pytest.raises(InvalidRequest, match="20000 x 20000 pixels") as caught:
            read(png_header(20_000, 20_000), LIMITS, param="images[2]")
        assert (caught.value.code, caught.value.param) == ("image_too_large", "images[2]")


def test_a_long_file_is_refused_unread() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_size(b"x" * (LIMITS.max_bytes + 1), LIMITS, param="images[2]")
    assert caught.value.code == "image_too_large"


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"<svg/>"])
def test_what_is_no_image_is_the_callers_error(data: bytes) -> None:
    for read in (read_size, decode_image):
        with pytest.raises(InvalidRequest) as caught:
            read(data, LIMITS, param="images[2]")
        assert (caught.value.code, caught.value.param) == ("invalid_image", "images[2]")


def test_a_truncated_image_has_a_size_and_no_pixels(encode_image: Encode) -> None:
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
    is_reduced=st.booleans(),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_decode_or_are_the_callers_error(
    encode_image: Encode,
    file_format: str,
    edits: list[tuple[float, int]],
    cut: float,
    is_reduced: bool,
) -> None:
    data = bytearray(encode_image(file_format))
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    kept = bytes(data[: max(1, int(cut * 2 * len(data)))])
    try:
        loaded = load_image(
            kept, LIMITS, param="images[2]", reduce_to=halves if is_reduced else None
        )
    except InvalidRequest:
        return
    upright = loaded.upright(loaded.image)
    assert upright.mode in {"RGB", "L"}
    left, top, right, bottom = loaded.box
    assert (left, top) == (0, 0)
    assert 0 <= loaded.image.width - right < 1
    assert 0 <= loaded.image.height - bottom < 1
    if not is_reduced:
        assert upright.size == loaded.size_hw[::-1]
