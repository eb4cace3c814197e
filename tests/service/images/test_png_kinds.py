"""PNG in every colour type, bit depth and interlacing, and files that break its rules."""

import itertools
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.images.codec import ImageLimits, decode_image

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=100_000)
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8)}
DEPTHS |= {GREY_ALPHA: (8, 16), RGBA: (8, 16)}
KINDS = [(kind, depth) for kind, depths in DEPTHS.items() for depth in depths]
# Of each of Adam7's passes: first column, first row, step across, step down.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
ADAM7 += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]

Samples = NDArray[np.int64]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def scan_lines(samples_HWC: Samples, depth: int) -> bytes:
    """Rows without a filter, packed."""
    lines = b""
    for row in samples_HWC.reshape(len(samples_HWC), -1):
        if depth == 16:
            packed = row.astype(">u2").tobytes()
        elif depth == 8:
            packed = row.astype(np.uint8).tobytes()
        else:
            bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
            packed = np.packbits(bits.astype(np.uint8).ravel()).tobytes()
        lines += b"\0" + packed
    return lines


def write_png(
    samples_HWC: Samples, kind: int, depth: int, *, interlaced: bool = False, extra: bytes = b""
) -> bytes:
    height, width, _ = samples_HWC.shape
    parts = [samples_HWC]
    if interlaced:
        parts = [samples_HWC[top::down, left::across] for left, top, across, down in ADAM7]
    raw = b"".join(scan_lines(part, depth) for part in parts if part.size)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def colours(depth: int) -> NDArray[np.uint8]:
    return np.random.default_rng(depth).integers(0, 256, (2**depth, 3), dtype=np.uint8)


def image(kind: int, depth: int, size: tuple[int, int] = (11, 13)) -> Samples:
    return np.random.default_rng(kind).integers(0, 2**depth, (*size, CHANNELS[kind]))


def meant(samples_HWC: Samples, kind: int, depth: int) -> NDArray[np.float64]:
    """RGB in 8 bits as the specification has it, with transparent parts laid on white."""
    if kind == PALETTE:
        return colours(depth)[samples_HWC[..., 0]].astype(float)
    scaled = samples_HWC * 255 / (2**depth - 1)
    colour = scaled[..., :3] if kind in {RGB, RGBA} else np.repeat(scaled[..., :1], 3, axis=2)
    alpha = scaled[..., -1:] / 255 if kind in {GREY_ALPHA, RGBA} else np.ones(1)
    return colour * alpha + 255 * (1 - alpha)


def decode(data: bytes) -> NDArray[np.uint8]:
    return decode_image(data, LIMITS, param="images[0]")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "depth"), KINDS)
@pytest.mark.parametrize("size", [(11, 13), (1, 1), (3, 2), (1, 9)])
def test_every_kind_has_its_colours(
    size: tuple[int, int], kind: int, depth: int, interlaced: bool
) -> None:
    samples_HWC = image(kind, depth, size)
    extra = chunk(b"PLTE", colours(depth).tobytes()) if kind == PALETTE else b""
    pixels = decode(write_png(samples_HWC, kind, depth, interlaced=interlaced, extra=extra))
    assert np.abs(pixels - meant(samples_HWC, kind, depth)).max() <= 2


@pytest.mark.parametrize(("kind", "depth"), [(GREY, 8), (RGB, 8), (PALETTE, 4), (PALETTE, 8)])
def test_a_transparent_colour_is_white(kind: int, depth: int) -> None:
    samples_HWC = image(kind, depth)
    first = samples_HWC[0, 0]
    if kind == PALETTE:
        alphas = bytes(0 if index == first[0] else 255 for index in range(2**depth))
        extra = chunk(b"PLTE", colours(depth).tobytes()) + chunk(b"tRNS", alphas)
    else:
        extra = chunk(b"tRNS", struct.pack(f">{len(first)}H", *first.tolist()))
    pixels = decode(write_png(samples_HWC, kind, depth, extra=extra))
    is_clear_HW = (samples_HWC == first).all(axis=2)
    assert (pixels[is_clear_HW] == 255).all()
    others = np.abs(pixels - meant(samples_HWC, kind, depth))[~is_clear_HW]
    assert others.max() <= 2


def broken() -> Iterator[tuple[str, bytes]]:
    good = write_png(image(RGB, 8), RGB, 8)
    for kind, depth in itertools.product(range(8), (0, 1, 2, 3, 4, 8, 16, 255)):
        if (kind, depth) not in KINDS:
            header = struct.pack(">IIBBBBB", 4, 4, depth, kind, 0, 0, 0)
            body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(200)))
            yield f"kind {kind} depth {depth}", good[:8] + body + chunk(b"IEND", b"")
    for place, name in ((26, "compression"), (27, "filter"), (28, "interlacing")):
        wrong = good[16:place] + b"\7" + good[place + 1 : 29]
        yield name, good[:8] + chunk(b"IHDR", wrong) + good[33:]
    for width, height in ((0, 5), (5, 0), (2**31, 5), (1, 2**31)):
        header = struct.pack(">IIBBBBB", width, height, 8, RGB, 0, 0, 0)
        yield f"{width} x {height}", good[:8] + chunk(b"IHDR", header) + good[33:]
    yield "no IHDR", good[:8] + good[33:]
    yield "no IDAT", good[:33] + chunk(b"IEND", b"")
    yield "no palette", write_png(image(PALETTE, 8), PALETTE, 8)
    yield (
        "short palette",
        write_png(image(PALETTE, 8), PALETTE, 8, extra=chunk(b"PLTE", bytes(6))),
    )
    yield "odd palette", write_png(image(PALETTE, 8), PALETTE, 8, extra=chunk(b"PLTE", bytes(7)))
    yield "checksum", good[:29] + bytes(4) + good[33:]
    yield "too little", good[:33] + chunk(b"IDAT", zlib.compress(bytes(40)))
    yield "too much", good[:33] + chunk(b"IDAT", zlib.compress(bytes(99_999))) + chunk(b"IEND", b"")
    yield "not deflated", good[:33] + chunk(b"IDAT", b"hello" * 20) + chunk(b"IEND", b"")
    yield "endless chunk", good[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(50)
    yield "short tRNS", write_png(image(RGB, 8), RGB, 8, extra=chunk(b"tRNS", b"\0"))
    yield "filter type", good[:33] + chunk(b"IDAT", zlib.compress(b"\x09" * 440))


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in broken()])
def test_broken_ones_are_images_or_the_callers_error(data: bytes) -> None:
    try:
        pixels_HW3 = decode(data)
    except InvalidRequest:
        return
    assert pixels_HW3.dtype == np.uint8
    assert pixels_HW3.ndim == 3
    assert pixels_HW3.shape[2] == 3
