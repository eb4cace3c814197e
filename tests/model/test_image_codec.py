"""Every kind of image becomes upright RGB; anything else raises an `ImageError`."""

import io
import math
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from model import image_codec
from model.image_codec import (
    DECODING_BYTES,
    FORMATS,
    MAX_READS,
    MAX_SCANS,
    WEBP_PIXEL_BYTES,
    ImageError,
    ImageLimits,
    ImageTooLarge,
    _BoundedReader,
    decode_image,
    has_too_many_scans,
    load_image,
    read_header,
    scale_flat,
    upright_size,
)

LIMITS = ImageLimits(max_bytes=2_000_000, max_pixels=1_000_000)
NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
ORANGE = (230, 120, 40)
SAMPLES = np.array([0, 255, 256, 0x7FFF, 0xFFFF], np.uint16)
# Pillow writes these; the HEIC files are x265's, which no test has.
WRITTEN = tuple(name for name in FORMATS if name != "HEIF")
HEIC = Path(__file__).with_name("heic")
TURNED = (HEIC / "turned.heic").read_bytes()


def flatten(image: Image.Image) -> Image.Image:
    return scale_flat(image, image.size[::-1], Image.Resampling.NEAREST, (0, 0, *image.size))


def save(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def save_noise(file_format: str = "PNG", *, mode: str = "RGB", **options: object) -> bytes:
    return save(Image.fromarray(NOISE).convert(mode), file_format, **options)


def decode(data: bytes) -> NDArray[np.uint8]:
    return decode_image(data, LIMITS)


def halves(size_hw: tuple[int, int]) -> tuple[int, int]:
    return size_hw[0] // 2, size_hw[1] // 2


def oriented(image: Image.Image, file_format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(image, file_format, exif=exif.tobytes())


@pytest.mark.parametrize("file_format", WRITTEN)
def test_every_format_is_decoded_and_can_be_excluded(file_format: str) -> None:
    data = save_noise(file_format)
    pixels_HW3 = decode(data)
    assert (pixels_HW3.shape, pixels_HW3.dtype.name) == ((30, 40, 3), "uint8")
    if file_format != "JPEG":
        assert load_image(data, LIMITS, reduce_to=halves).image.size == (40, 30)
    others = tuple(name for name in FORMATS if name != file_format)
    with pytest.raises(ImageError, match=", ".join(others)):
        decode_image(data, LIMITS, formats=others)


@pytest.mark.parametrize(
    ("file_format", "orientation"),
    [*(("JPEG", tag) for tag in range(1, 9)), *((name, 6) for name in ("PNG", "WEBP", "TIFF"))],
)
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste("red", (0, 0, 16, 8))
    # The inverse of the transposition that the tag asks for.
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright
    if orientation in inverse:
        stored = upright.transpose(Image.Transpose(inverse[orientation]))
    data = oriented(stored, file_format, orientation)
    pixels_HW3 = decode(data)
    assert pixels_HW3.shape == (16, 32, 3)
    assert pixels_HW3[4, 8, 0] > 200
    assert pixels_HW3[12, 24, 0] < 50
    if file_format != "TIFF":  # Pillow applies the tag of a TIFF itself, when it decodes
        assert upright_size(data) == (16, 32)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_is_decoded(file_format: str) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue", "green")]
    data = save(frames[0], file_format, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as animation:
        assert getattr(animation, "n_frames", 1) == 3
    assert np.abs(decode(data)[0, 0].astype(int) - (255, 0, 0)).max() <= 3
    if file_format == "MPO":
        assert load_image(data, LIMITS, reduce_to=halves).image.size == (32, 24)


@pytest.mark.parametrize(("progressive", "mode"), [(False, "RGB"), (False, "L"), (True, "CMYK")])
def test_a_jpeg_is_reduced_as_far_as_allowed(progressive: bool, mode: str) -> None:
    image = Image.linear_gradient("L").resize((333, 250)).convert(mode)
    data = save(image, "JPEG", progressive=progressive)
    for least_hw, factor in (((250, 333), 1), ((126, 1), 1), ((125, 100), 2), ((31, 41), 8)):
        loaded = load_image(data, LIMITS, reduce_to={(250, 333): least_hw}.__getitem__)
        assert loaded.size_hw == (250, 333)
        assert list(loaded.box) == [0, 0, 333 / factor, 250 / factor]
        assert loaded.image.size == (-(-333 // factor), -(-250 // factor))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    return struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def test_limits_are_checked_on_the_header() -> None:
    bomb = png(chunk(b"IHDR", png_header(20_000, 20_000)), chunk(b"IDAT", zlib.compress(b"\0")))
    for read in (read_header, decode_image):
        with pytest.raises(ImageTooLarge, match="20000 x 20000 pixels"):
            read(bomb, LIMITS)
        with pytest.raises(ImageTooLarge, match="2000001 bytes"):
            read(b"x" * (LIMITS.max_bytes + 1), LIMITS)
        with pytest.raises(ImageError, match="at least 31"):
            read(save_noise(), replace(LIMITS, min_side=31))
    with pytest.raises(ValueError, match="limits"):
        ImageLimits(max_bytes=100, max_pixels=10, min_side=14)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"<svg/>"])
def test_other_data_is_an_image_error(data: bytes) -> None:
    for read in (read_header, decode_image):
        with pytest.raises(ImageError, match="JPEG, PNG, WEBP"):
            read(data, LIMITS)


@settings(max_examples=100, deadline=None)
@given(
    file_format=st.sampled_from(FORMATS),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0, 1),
    is_reduced=st.booleans(),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_file_decodes_or_is_an_image_error(
    file_format: str, edits: list[tuple[float, int]], cut: float, is_reduced: bool
) -> None:
    data = bytearray(TURNED if file_format == "HEIF" else save_noise(file_format))
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    kept = bytes(data[: max(1, int(cut * 2 * len(data)))])
    try:
        loaded = load_image(kept, LIMITS, reduce_to=halves if is_reduced else None)
        flat = flatten(loaded.image)
    except ImageError:
        return
    upright = loaded.upright(flat)
    assert upright.mode in {"RGB", "L"}
    left, top, right, bottom = loaded.box
    assert (left, top) == (0, 0)
    assert 0 <= loaded.image.width - right < 1
    assert 0 <= loaded.image.height - bottom < 1
    if not is_reduced:
        assert upright.size == loaded.size_hw[::-1]


def files_of_many_parts() -> dict[str, bytes]:
    """Small images of 60,000 to 1,000,000 parts that hold nothing."""
    jpeg, png = save_noise("JPEG"), save_noise("PNG")
    gif = save_noise("GIF", mode="P")
    end = png.index(b"IDAT") - 4
    after_tables = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    rle = struct.pack("<IiiHHIIiiII", 40, 1000, 1000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024)
    runs = b"\x01\x00" * 1_000_000
    return {
        "jpeg_comments": jpeg[:2] + b"\xff\xfe\x00\x02" * 60_000 + jpeg[2:],
        "jpeg_fill": jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:],
        "png_chunks": png[:end] + chunk(b"prVt", b"") * 60_000 + png[end:],
        "png_chunks_after_pixels": png[:-12] + chunk(b"prVt", b"") * 60_000 + png[-12:],
        "gif_comment": gif[:after_tables]
        + b"\x21\xfe" + b"\x01a" * 60_000 + b"\x00" + gif[after_tables:],
        "bmp_runs": b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(rle)) + rle + runs,
    }  # fmt: skip


def test_a_file_of_too_many_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    readers: dict[_BoundedReader, None] = {}
    real = _BoundedReader.read

    def read(reader: _BoundedReader, size: int | None = -1, /) -> bytes:
        readers[reader] = None
        return real(reader, size)

    monkeypatch.setattr(_BoundedReader, "read", read)
    limits = ImageLimits(max_bytes=8_000_000, max_pixels=2_000_000)
    for data in files_of_many_parts().values():
        with pytest.raises(ImageTooLarge, match="small parts"):
            decode_image(data, limits)
    assert max(reader.num_reads for reader in readers) <= MAX_READS + 1


def tiled_tiff(tile_hw: tuple[int, int], size_hw: tuple[int, int] = (1, 1)) -> bytes:
    """A TIFF with one tile compressed by LZW, which holds nothing that can be decoded."""
    tags = [
        (256, 4, size_hw[1]), (257, 4, size_hw[0]), (258, 3, 8), (259, 3, 5), (262, 3, 1),
        (277, 3, 1), (322, 4, tile_hw[1]), (323, 4, tile_hw[0]), (324, 4, 8), (325, 4, 4),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 12) + b"\x80\x00\x20\x20" + struct.pack("<H", len(tags)) + (
        entries + bytes(4)
    )  # fmt: skip


def test_a_tiff_with_a_tile_much_larger_than_the_image_is_refused_by_its_header() -> None:
    with pytest.raises(ImageTooLarge, match="tiles"):
        read_header(tiled_tiff((32_752, 65_520)), LIMITS)
    assert read_header(tiled_tiff((1024, 1024)), LIMITS) == ((1, 1), 0)


SCANS_OF_PILLOW = 10


def repeat_scans(data: bytes, times: int) -> bytes:
    first = data.index(b"\xff\xda")
    return data[:first] + data[first:-2] * times + data[-2:]


def test_the_limit_of_scans_is_exact_and_scans_of_single_components_count() -> None:
    data = save_noise("JPEG", progressive=True)
    assert not has_too_many_scans(repeat_scans(data, MAX_SCANS // SCANS_OF_PILLOW))
    too_many = repeat_scans(data, MAX_SCANS // SCANS_OF_PILLOW + 1)
    assert has_too_many_scans(too_many)
    with pytest.raises(ImageTooLarge, match="scans"):
        decode(too_many)
    plain = save_noise("JPEG")
    scan = plain.index(b"\xff\xda")
    alone = b"\xff\xda" + struct.pack(">HB", 8, 1) + plain[scan + 5 : scan + 7] + bytes(3)
    assert has_too_many_scans(plain[:scan] + alone * (MAX_SCANS + 1) + plain[scan:])
    for start in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda\0\x0c\3", plain):
        assert not has_too_many_scans(start)


def test_scans_are_not_hidden_by_markers_in_segments_nor_by_bytes_between_them() -> None:
    plain = save_noise("JPEG")
    many = repeat_scans(save_noise("JPEG", progressive=True), 50)
    # Thumbnails and noise contain such markers.
    inside = b"\xff\xda" * 1000 + plain[plain.index(b"\xff\xda") :]
    length = struct.pack(">H", 2 + len(inside))
    for kind in (b"\xff\xe1", b"\xff\xfe"):
        segment = kind + length + inside
        assert not has_too_many_scans(plain[:2] + segment + plain[2:])
        assert has_too_many_scans(many[:2] + segment + many[2:])
    # A parser that takes the filling for a segment would end in a comment with one scan.
    comment = plain[plain.index(b"\xff\xc0") :]
    lie = b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment
    for filling in (b"\0", b"\xff", b"\xff\xd0", b"\xff\x01"):
        assert has_too_many_scans(many[:2] + filling + lie + many[2:])


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """An RGBA image in another mode; some modes need several conversions."""
    if mode in {"P", "PA"}:
        made = image.convert("RGB").quantize(4)
        if mode == "PA":
            made.putalpha(image.getchannel("A"))
        return made
    for step in ("LA", "La") if mode == "La" else (mode,):
        image = image.convert(step if mode in TRANSPARENT else "RGB").convert(step)
    return image


TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


@pytest.mark.parametrize("mode", [*TRANSPARENT, "RGBX", "CMYK", "YCbCr", "HSV", "P"])
def test_colours_stay_and_transparent_pixels_become_white(mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (*ORANGE, 255))
    if mode in TRANSPARENT:
        image.putpixel((1, 0), (*ORANGE, 128))
        image.putpixel((2, 0), (*ORANGE, 0))
    image = in_mode(image, mode)
    assert image.mode == mode
    grey = np.asarray(Image.new("RGB", (1, 1), ORANGE).convert("L"))[0, 0]
    colour = np.full(3, grey) if mode in {"LA", "La"} else np.array(ORANGE)
    shades = (
        [colour, (colour + 255.0) / 2, np.full(3, 255)] if mode in TRANSPARENT else [colour] * 3
    )
    flat = np.asarray(flatten(image).convert("RGB")).astype(int)
    assert np.abs(flat[0] - shades).max() <= 5


# Decodes and scales standard input, and prints what the header says that it takes, and the peak.
DECODE = """
import sys
from PIL import Image
from model.image_codec import ImageLimits, load_image, read_header, scale_flat
from service.machine import PeakMeter

data = sys.stdin.buffer.read()
limits = ImageLimits(max_bytes=len(data), max_pixels=36_000_000)

def run():
    image = load_image(data, limits).image
    scale_flat(image, (112, 112), Image.Resampling.BILINEAR, (0, 0, *image.size))

peak = PeakMeter().peak_bytes(run)
print(read_header(data, limits)[1], -1 if peak is None else peak)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file_format", "mode", "options"),
    [
        ("PNG", "P", {"transparency": 0}),
        ("PNG", "RGB", {"transparency": (0, 0, 0)}),
        ("PNG", "RGBA", {}),
        ("PNG", "I;16", {}),
        ("GIF", "P", {"transparency": 0}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 2}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("TIFF", "RGB", {"tiffinfo": {274: 6}}),
        ("TIFF", "L", {"compression": "tiff_lzw"}),
        ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
        ("TIFF", "YCbCr", {"compression": "tiff_lzw"}),
        ("TIFF", "RGB", {"compression": "zstd"}),
        ("TIFF", "F", {"compression": "lzma"}),
    ],
)
def test_decoding_takes_no_more_memory_than_its_header_says(
    monkeypatch: pytest.MonkeyPatch,
    project_root: Path,
    file_format: str,
    mode: str,
    options: dict[str, object],
) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 2**30)  # the image is one strip
    data = save(Image.new(mode, (3000, 3000)), file_format, **options)
    result = subprocess.run(
        [sys.executable, "-c", DECODE],
        cwd=project_root,
        input=data,
        check=True,
        capture_output=True,
    )
    num_bytes, peak_bytes = map(int, result.stdout.split())
    # A band takes 7 to 12 MiB; a copy of this image would take 34.
    assert peak_bytes < num_bytes + 28 * 2**20


def test_an_image_that_takes_too_much_memory_is_refused() -> None:
    side = 700  # half of the pixels of the limit
    data = save(Image.new("RGB", (side, side), ORANGE), "WEBP", lossless=True)
    limits = replace(LIMITS, max_pixels=math.ceil(WEBP_PIXEL_BYTES * side**2 / DECODING_BYTES))
    assert decode_image(data, limits)[0, 0].tolist() == list(ORANGE)
    with pytest.raises(ImageTooLarge, match="bytes of memory, at most 4400000 allowed"):
        decode(data)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        *(
            (Image.frombytes(mode, (5, 1), SAMPLES.astype(dtype).tobytes()), [0, 0, 1, 127, 255])
            for mode, dtype in (("I;16", "<u2"), ("I;16B", ">u2"))
        ),
        (np.array([[0, 257 * 100, 65535, 10**9, -5]], np.int32), [0, 100, 255, 255, 0]),
        (np.array([[0.0, 0.5, 1.0, np.nan, -1]], np.float32), [0, 127, 255, 0, 0]),
        (np.array([[0.0, 100.0, 255.0, np.inf, 300.0]], np.float32), [0, 100, 255, 255, 255]),
    ],
)
def test_deep_samples_are_scaled_to_8_bits(image: Any, expected: list[int]) -> None:
    given = image if isinstance(image, Image.Image) else Image.fromarray(image)
    assert np.asarray(flatten(given)).tolist() == [expected]


@pytest.mark.parametrize("name", ["turned", "transparent"])
def test_heic_is_upright_and_on_white(name: str) -> None:
    pixels_HW3 = decode((HEIC / f"{name}.heic").read_bytes())
    # Both show one scene of 64 x 48 pixels; half transparent it is paler.
    if name == "turned":
        assert pixels_HW3.shape == (64, 48, 3)
        assert read_header(TURNED, LIMITS)[0] == upright_size(TURNED) == (64, 48)
        assert pixels_HW3.min() < 60
    else:
        assert pixels_HW3.shape == (48, 64, 3)
        assert pixels_HW3.min() > 100


def test_heic_has_the_limits_of_other_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    num_pixels = 64 * 48
    with pytest.raises(ImageTooLarge, match="48 x 64 pixels, at most 3071"):
        decode_image(TURNED, replace(LIMITS, max_pixels=num_pixels - 1))
    # The file has 64 x 64 pixels and shows 64 x 48; decoding takes 14 bytes for each.
    with pytest.raises(ImageTooLarge, match="decoding this HEIF takes 57344 bytes"):
        decode_image(TURNED, replace(LIMITS, max_pixels=4 * num_pixels))
    limits = replace(LIMITS, max_pixels=5 * num_pixels)
    assert load_image(TURNED, limits).size_hw == (64, 48)
    monkeypatch.setattr(image_codec, "SMALL_DECODING_BYTES", 0)
    assert read_header(TURNED, limits)[1] == 14 * 64 * 64
    for cut in (20, 300, len(TURNED) // 2, len(TURNED) - 40):
        with pytest.raises(ImageError, match="broken"):
            decode(TURNED[:cut])


@pytest.mark.parametrize("side", [16, 10_000])
def test_a_heic_of_another_size_than_it_declares_is_refused(side: int) -> None:
    data = bytearray(TURNED)
    place = data.index(b"ispe") + 8
    assert struct.unpack_from(">II", data, place) == (64, 64)
    struct.pack_into(">II", data, place, side, side)
    kind = ImageTooLarge if side > 64 else ImageError
    with pytest.raises(kind):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("brand", "words"),
    [(b"avif", "AVIF is not read; send one of JPEG"), (b"heic", r"pip install -e '\.\[heif\]'")],
)
def test_a_phones_format_that_is_not_read_is_named(
    brand: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_codec, "HAS_HEIF", False)
    with pytest.raises(ImageError, match=words):
        decode(b"\x00\x00\x00\x20ftyp" + brand + bytes(40))
