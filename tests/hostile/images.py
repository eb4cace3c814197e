"""Images in six formats, whole and damaged, and bombs."""

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image

Damage = Callable[[bytes, random.Random], bytes]
Draw = Callable[[random.Random], bytes]

# Formats with those of Pillow's modes that they can hold.
MODES: Final = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "TIFF": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "F", "CMYK", "YCbCr", "LAB"),
    "BMP": ("RGB", "L", "P", "1"),
}
SAVE_OPTIONS: Final[dict[str, tuple[dict[str, object], ...]]] = {
    "JPEG": ({}, {"progressive": True}, {"quality": 100, "subsampling": 0}),
    "TIFF": tuple({"compression": c} for c in ("raw", "tiff_lzw", "tiff_deflate", "packbits")),
    "WEBP": ({}, {"lossless": True}),
}


def draws() -> dict[str, Draw]:
    """Draws one hostile image of each kind."""

    def damaged(damage: Damage, rng: random.Random) -> bytes:
        return damage(any_whole(rng), rng)

    return {
        **{f"image {name}": partial(damaged, damage) for name, damage in DAMAGES.items()},
        "image bomb": lambda rng: rng.choice(bombs()),
    }


@cache
def whole(file_format: str, mode: str, seed: int, option: int = 0) -> bytes:
    """A small encoded image of smooth noise, the same for the same arguments."""
    draw = np.random.default_rng(seed)
    height, width = (int(n) for n in draw.integers(24, 120, 2))
    noise = Image.fromarray(draw.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    image = noise.resize((width, height), Image.Resampling.BICUBIC)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    options = SAVE_OPTIONS.get(file_format, ({},))
    stream = BytesIO()
    image.save(stream, file_format, **options[option % len(options)])
    return stream.getvalue()


def any_whole(rng: random.Random) -> bytes:
    """One of the whole images."""
    file_format = rng.choice(list(MODES))
    return whole(file_format, rng.choice(MODES[file_format]), rng.randrange(4), rng.randrange(4))


# Damages.


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """Flip a few bits, most often near the beginning, where the structure is."""
    damaged = bytearray(data or b"\0")
    reach = len(damaged) if rng.random() < 0.5 else min(len(damaged), 200)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        damaged[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def insert(data: bytes, rng: random.Random) -> bytes:
    """Insert a piece of itself many times, the end of another image, or noise."""
    start = rng.randrange(len(data) + 1)
    other = any_whole(rng)
    pieces = (
        data[start : start + rng.randrange(1, 400)] * rng.randrange(2, 50),
        other[rng.randrange(len(other)) :],
        rng.randbytes(rng.randrange(1, 5000)),
    )
    return data[:start] + rng.choice(pieces) + data[start:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a piece with noise, zeros or ones."""
    length = rng.choice((1, 2, 4, 4, 16, 100))
    start = rng.randrange(max(1, len(data) - length))
    filling = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))
    return data[:start] + filling + data[start + length :]


DAMAGES: Final[dict[str, Damage]] = {
    "cut": cut,
    "bit flips": flip_bits,
    "inserted": insert,
    "overwritten": overwrite,
}


# PNG files.

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
SIDE: Final = 32


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """One chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(side: int = SIDE, *, depth: int = 8, color: int = 2, interlace: int = 0) -> bytes:
    """The first chunk."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, interlace))


def pixels() -> bytes:
    """The compressed pixels: rows of a simple pattern, with each of the five filters in turn."""
    row = bytes(37 * i % 256 for i in range(3 * SIDE))
    return zlib.compress(b"".join(bytes([y % 5]) + row for y in range(SIDE)))


def assemble(*chunks: bytes) -> bytes:
    """A PNG file of these chunks and the last one."""
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND")


# Bombs: small files that become large by dimensions, frames, chunks, profiles or scans.

MIB: Final = 1024 * 1024
# Just within the default limit of pixels: decoded, not refused.
LEGAL_SIDE: Final = 6300
LARGE_SIDE: Final = 30_000


@cache
def bombs() -> tuple[bytes, ...]:
    """All bombs; some take a second to make."""
    return (*png_bombs(), *gif_bombs(), *jpeg_bombs(), *other_bombs())


def zeros(num_bytes: int) -> bytes:
    """Many zeros, compressed about a thousand times, without holding them in memory."""
    packer = zlib.compressobj(9)
    packed = [packer.compress(bytes(MIB)) for _ in range(num_bytes // MIB)]
    return b"".join((*packed, packer.compress(bytes(num_bytes % MIB)), packer.flush()))


def png_bombs() -> Iterator[bytes]:
    """Large dimensions, and compressed chunks beside a small image."""
    head, body = header(), chunk(b"IDAT", pixels())
    for side, num_bytes in (
        (LEGAL_SIDE, LEGAL_SIDE * (3 * LEGAL_SIDE + 1)),
        (LARGE_SIDE, 16 * MIB),
    ):
        yield assemble(header(side), chunk(b"IDAT", zeros(num_bytes)))
        wide = header(side, depth=16, color=6, interlace=1)
        yield assemble(wide, chunk(b"IDAT", zeros(MIB)))
    full = zeros(200 * MIB)
    for kind, start in {b"zTXt": b"comment\0\0", b"iCCP": b"profile\0\0"}.items():
        yield assemble(head, chunk(kind, start + full), body)
        yield assemble(head, body, chunk(kind, start + full))
    yield assemble(head, *[chunk(b"zTXt", b"comment\0\0" + zeros(MIB))] * 300, body)
    yield assemble(head, *[chunk(b"tEXt", b"a\0b")] * 50_000, body)
    yield assemble(head, chunk(b"eXIf", b"MM\0*" + bytes(4 * MIB)), body)
    frames = (struct.pack(">IIIIIHHBB", n, 32, 32, 0, 0, 1, 1, 0, 0) for n in range(10_000))
    control = chunk(b"acTL", struct.pack(">II", 10**9, 0))
    yield assemble(head, control, *(chunk(b"fcTL", frame) for frame in frames), body)
    yield SIGNATURE + head + chunk(b"IDAT", b"") * 100_000


def gif_bombs() -> Iterator[bytes]:
    """Many frames or comments, and large screens."""

    def start(width: int, height: int) -> bytes:
        return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)

    def frame(side: int, codes: bytes = b"\x02\x02D\x01\0") -> bytes:
        return b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + codes

    yield start(1, 1) + frame(1) * 20_000 + b";"
    yield start(65_535, 65_535) + frame(1) + b";"
    yield start(6000, 6000) + frame(1) * 5_000 + b";"
    yield start(1, 1) + frame(65_535) + b";"
    yield start(1, 1) + (b"!\xfe" + b"\xff" + b"c" * 255 + b"\0") * 10_000 + frame(1)
    yield start(64, 64) + frame(64, b"\x0c")


def jpeg_bombs() -> Iterator[bytes]:
    """Large segments, large dimensions, and repeated scans."""
    stream = BytesIO()
    Image.new("RGB", (64, 64), (90, 60, 30)).save(stream, "JPEG", progressive=True)
    plain = stream.getvalue()
    for marker, start in (
        (b"\xff\xfe", b""),
        (b"\xff\xe1", b"Exif\0\0MM\0*"),
        (b"\xff\xe2", b"ICC_PROFILE\0\1\1"),
    ):
        filling = b"\xff" if start.startswith(b"Exif") else b"\0"
        segment = marker + struct.pack(">H", 65_535) + start + filling * (65_533 - len(start))
        yield plain[:2] + segment * 100 + plain[2:]
    frame = plain.index(b"\xff\xc2")
    for side in (LEGAL_SIDE, 65_000):
        sized = plain[: frame + 5] + struct.pack(">HH", side, side) + plain[frame + 9 :]
        yield sized
        scan = sized.index(b"\xff\xda")
        yield sized[:scan] + sized[scan:-2] * 2_000 + sized[-2:]


def other_bombs() -> Iterator[bytes]:
    """TIFF, WebP and BMP: cyclic directories, large canvases, negative heights."""
    tags = {256: 60_000, 257: 60_000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 60_000, 279: 10}
    changes: tuple[dict[int, int], ...] = (
        {},  # a large size
        {256: 6000, 257: 6000},  # a legal size
        {256: 100, 257: 100, 277: 65_000},  # many samples
        {256: 1, 257: 2**26, 278: 1},  # strips of one row
        {256: 6000, 257: 6000, 259: 8},  # deflate without data
        {256: 6000, 257: 6000, 259: 7},  # JPEG inside
    )
    for changed in changes:
        entries = sorted({**tags, **changed}.items())
        directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        count, itself = struct.pack("<H", len(entries)), struct.pack("<I", 8)
        yield b"II*\0" + itself + count + directory + itself
    many = struct.pack("<HHII", 65_000, 2, 2**31, 0) * 65_535
    yield b"II*\0" + struct.pack("<IH", 8, 65_535) + many
    yield b"II*\0" + struct.pack("<IHI", 8, 0, 8)
    inner = whole("WEBP", "RGB", 0, 1)[12:]
    for flags in (0, 2):
        body = b"WEBPVP8X" + struct.pack("<IB3x", 10, flags) + b"\xff\x3f\x00" * 2 + inner
        yield b"RIFF" + struct.pack("<I", len(body)) + body
    for width, height in ((30_000, 30_000), (6000, -6000), (-1, 1), (1, -(2**31)), (2**31 - 1, 1)):
        info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        yield b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + info + bytes(64)
