"""A JPEG file of a thousand scans is refused unread; no file that anybody writes is."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidRequest
from service.images.codec import MAX_SCANS, ImageLimits, decode_image, has_too_many_scans

LIMITS = ImageLimits(max_bytes=2_000_000, max_pixels=1_000_000)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
SCANS_OF_PILLOW = 10


def encode(*, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def repeated(data: bytes, times: int) -> bytes:
    """All scans of a file so many times over."""
    first = data.index(b"\xff\xda")
    return data[:first] + data[first:-2] * times + data[-2:]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_what_is_written_is_read(mode: str, progressive: bool) -> None:
    data = encode(mode=mode, progressive=progressive)
    assert not has_too_many_scans(data)
    assert decode_image(data, LIMITS, param="image").shape == (40, 50, 3)


def test_the_bound_is_exact() -> None:
    data = encode(progressive=True)
    assert not has_too_many_scans(repeated(data, MAX_SCANS // SCANS_OF_PILLOW))
    assert has_too_many_scans(repeated(data, MAX_SCANS // SCANS_OF_PILLOW + 1))


def test_a_image_of_too_many_scans_is_the_callers_error() -> None:
    with pytest.raises(InvalidRequest, match="scans") as caught:
        decode_image(repeated(encode(progressive=True), 50), LIMITS, param="images[1]")
    assert (caught.value.code, caught.value.param) == ("image_too_large", "images[1]")


def test_one_component_a_scan_is_counted_in_a_sequential_file_too() -> None:
    data = encode()
    scan = data.index(b"\xff\xda")
    alone = b"\xff\xda" + struct.pack(">HB", 8, 1) + data[scan + 5 : scan + 7] + bytes(3)
    split = data[:scan] + alone * (MAX_SCANS + 1) + data[scan:]
    assert has_too_many_scans(split)


@pytest.mark.parametrize("segment", [0xE1, 0xFE])
def test_markers_in_other_segments_do_not_hide_the_first_scan(segment: int) -> None:
    data = encode()
    # As a thumbnail has them, and in noise.
    inside = b"\xff\xda" * 1000 + data[data.index(b"\xff\xda") :]
    length = struct.pack(">H", 2 + len(inside))
    assert not has_too_many_scans(data[:2] + bytes([0xFF, segment]) + length + inside + data[2:])
    scans = repeated(encode(progressive=True), 50)
    assert has_too_many_scans(scans[:2] + bytes([0xFF, segment]) + length + inside + scans[2:])


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\xff\xd0", b"\xff\x01"])
def test_what_stands_between_segments_leads_nobody_astray(filling: bytes) -> None:
    # A reader that takes the filling for a segment would land in a comment that says otherwise.
    one = encode()
    comment = one[one.index(b"\xff\xc0") :]
    lie = b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment
    many = repeated(encode(progressive=True), 50)
    assert has_too_many_scans(many[:2] + filling + lie + many[2:])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda\0\x0c\3"])
def test_a_beginning_alone_is_not_too_much(data: bytes) -> None:
    assert not has_too_many_scans(data)
