"""PNG files as PngSuite has them, written here: every depth and colour type, and what is wrong."""

import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# Colour type of the PNG standard: the bit depths that it may have, and its samples a pixel.
DEPTHS: Final = {
    0: ((1, 2, 4, 8, 16), 1),
    2: ((8, 16), 3),
    3: ((1, 2, 4, 8), 1),
    4: ((8, 16), 2),
    6: ((8, 16), 4),
}
# Adam7: where each pass begins and how far it steps, as x, y, dx, dy.
PASSES: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
SIDE: Final = 32

Oddity = tuple[str, bytes]


def chunk(kind: bytes, data: bytes = b"", *, crc: int | None = None) -> bytes:
    """One chunk, with a wrong checksum where one is given."""
    checked = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checked)


def header(side: int = SIDE, *, depth: int = 8, color: int = 2, interlace: int = 0) -> bytes:
    """The first chunk."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, interlace))


def scanlines(width: int, height: int, bits: int, seed: int = 0) -> bytes:
    """Rows of a simple pattern, each under one of the five filters."""
    length = (width * bits + 7) // 8
    row = bytes((37 * i + seed) % 256 for i in range(length))
    return b"".join(bytes([y % 5]) + row for y in range(height))


def pixels(color: int, depth: int, interlace: int) -> bytes:
    """The compressed pixels, whole or in seven passes."""
    bits = depth * DEPTHS[color][1]
    if not interlace:
        return zlib.compress(scanlines(SIDE, SIDE, bits))
    rows = b""
    for x, y, dx, dy in PASSES:
        rows += scanlines((SIDE - x + dx - 1) // dx, (SIDE - y + dy - 1) // dy, bits, x)
    return zlib.compress(rows)


def assemble(*chunks: bytes) -> bytes:
    """A file of these chunks, ended as it should be."""
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND")


def regular() -> Iterator[Oddity]:
    """Every colour type at every depth: plain, interlaced, transparent, and short of palette."""
    transparency = {0: bytes(2), 2: bytes(6), 3: bytes(range(0, 256, 64))}
    for color, (depths, _) in DEPTHS.items():
        for depth in depths:
            for interlace in (0, 1):
                name = f"png type {color} depth {depth} interlace {interlace}"
                head = header(color=color, depth=depth, interlace=interlace)
                body = chunk(b"IDAT", pixels(color, depth, interlace))
                full = bytes(range(256)) * 3
                palettes = [full[: 3 << min(depth, 8)], full[:3], b"", full[:4]]
                for entries in palettes if color == 3 else [None]:
                    palette = b"" if entries is None else chunk(b"PLTE", entries)
                    yield name, assemble(head, palette, body)
                    if color in transparency:
                        clear = chunk(b"tRNS", transparency[color])
                        yield f"{name} tRNS", assemble(head, palette, clear, body)
                        yield f"{name} tRNS first", assemble(head, clear, palette, body)


def irregular() -> Iterator[Oddity]:
    """Files that break the standard, each in one way."""
    head, raw = header(), pixels(2, 8, 0)
    body, end = chunk(b"IDAT", raw), chunk(b"IEND")
    for depth in (0, 3, 5, 17, 32, 255):
        yield "png depth", assemble(header(depth=depth), body)
    for color in (1, 5, 7, 255):
        yield "png colour type", assemble(header(color=color), body)
    yield "png interlace method", assemble(header(interlace=2), body)
    for side in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        yield "png side", assemble(header(side), body)
    yield "png checksum of head", assemble(chunk(b"IHDR", head[8:-4], crc=0), body)
    yield "png checksum of pixels", assemble(head, chunk(b"IDAT", raw, crc=1))
    yield "png without end", SIGNATURE + head + body
    yield "png without pixels", assemble(head)
    yield "png without head", assemble(body)
    yield "png empty pixels", assemble(head, chunk(b"IDAT"))
    yield "png two heads", assemble(head, head, body)
    yield "png pixels cut", assemble(head, chunk(b"IDAT", raw[: len(raw) // 2]))
    yield "png pixels no zlib", assemble(head, chunk(b"IDAT", b"not compressed"))
    yield "png pixels too many", assemble(head, chunk(b"IDAT", zlib.compress(bytes(10**6))))
    yield (
        "png one byte a chunk",
        assemble(head, *(chunk(b"IDAT", raw[i : i + 1]) for i in range(len(raw)))),
    )
    yield (
        "png chunk inside pixels",
        assemble(head, chunk(b"IDAT", raw[:9]), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", raw[9:])),
    )
    yield "png unknown critical chunk", assemble(head, chunk(b"ABCD", b"x"), body)
    yield "png chunk named by noise", assemble(head, chunk(b"\x00\xff\n\x01", b"x"), body)
    yield (
        "png length over the end",
        SIGNATURE + head + struct.pack(">I", 2**31 - 1) + body[4:] + end,
    )
    yield "png length negative", SIGNATURE + head + struct.pack(">I", 2**32 - 1) + body[4:] + end
    yield (
        "png filter unknown",
        assemble(head, chunk(b"IDAT", zlib.compress(b"\x09" + bytes(SIDE * 97)))),
    )
    yield "png gamma zero", assemble(head, chunk(b"gAMA", bytes(4)), body)
    yield "png broken profile", assemble(head, chunk(b"iCCP", b"x\0\0" + b"no zlib"), body)
    yield "png broken EXIF", assemble(head, chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"), body)
    yield (
        "png animation control",
        assemble(head, chunk(b"acTL", b"\xff" * 8), chunk(b"fcTL", b"\xff" * 26), body),
    )
    yield "png signature alone", SIGNATURE
    yield "empty", b""
    yield "one byte", b"\x89"


@cache
def oddities() -> tuple[Oddity, ...]:
    """All of them, by name."""
    return (*regular(), *irregular())
