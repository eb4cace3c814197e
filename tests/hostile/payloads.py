"""Broken and hostile bodies: images, bombs, forms, JSON and documented requests gone wrong."""

import base64
import json
import random
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from typing import Final

import grpc
import numpy as np
import schemathesis
from PIL import Image
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder

from service.grpc.generated import embed_pb2, image_pb2, segment_pb2
from tests.hostile.wire import (
    DAMAGES,
    FORMATS,
    MODES,
    NUM_SEEDS,
    Attack,
    Books,
    Broken,
    RestClient,
    call,
    checked_code,
    whole,
)

# Bodies of the right media type that are wrong inside: JSON and forms, deep, long, broken, odd.

ALLOWED: Final = frozenset({"200", "404", "406", "413", "415", "422", "429"})
TARGETS: Final = ("/v1/images:embed", "/v1/texts:embed", "/v1/images:segment")
WORDS: Final = (
    "a",
    " ",
    "\0",
    "\ud83d\udc36" * 50,
    "\u202e\u0301" * 100,
    "e" + "\u0301" * 1999,
    "x" * 2001,
    "\ufffe",
    "{}",
    "{0}{x!r}",
    "%s%n",
)
Make = Callable[[random.Random], bytes]


def broken_json(rng: random.Random) -> bytes:
    """Documents that are none, or that a parser may choke on."""
    return rng.choice(
        (
            b"",
            b"[" * 100_000,
            b'{"texts":' * 20_000 + b"1" + b"}" * 20_000,
            b'{"texts":["a"],"texts":["b"]}',
            b'{"texts":["\xff\xfe"]}',
            b'{"texts":["\\ud800"]}',
            b'{"texts":["a"],"normalize":' + b"9" * 100_000 + b"}",
            b'{"image":"aGk=","resolution":1e400}',
            b'{"image":"aGk=","resolution":NaN}',
            b'{"image":"' + b"=" * 100_000 + b'"}',
            b'{"image":"data:image/png;base64,\xc3\xa9"}',
            b'{"image":"data:;;;,,,"}',
            b'\xef\xbb\xbf{"texts":["a"]}',
            '{"texts":["a"]}'.encode("utf-16"),
            b'{"texts":["a"]} trailing',
            b'{"__proto__":{"texts":["a"]}}',
            rng.randbytes(1000),
        )
    )


def long_json(rng: random.Random) -> bytes:
    """Right in form and far too much of it."""
    return json.dumps(
        rng.choice(
            (
                {"texts": ["a"] * 1025},
                {"texts": ["a"] * 200_000},
                {"texts": ["a"], "templates": ["{}"] * 65},
                {"texts": [f"{n} words" for n in range(1024)], "templates": "tcl"},
                {"images": ["aGk="] * 33},
                {"images": [""] * 100_000},
                {"image": "aGk=", "classes": [str(n) for n in range(513)]},
                {"image": "aGk=", "classes": [{"name": "a", "prompts": ["b"] * 2000}]},
                {f"field {n}": n for n in range(20_000)},
            )
        )
    ).encode()


def odd_words(rng: random.Random) -> bytes:
    """Texts of any Unicode, well formed."""
    words = [rng.choice(WORDS) for _ in range(3)]
    body = {"texts": words, "templates": rng.choice(("none", ["a {}"], ["{} {}"], [], "other"))}
    return json.dumps(body).encode()


def form(rng: random.Random) -> bytes:
    """Multipart bodies cut short, nested, without end, of a thousand parts."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'
    return rng.choice(
        (
            b"",
            b"--b",
            b"--b--\r\n",
            part % b"images",
            part % b"\xff\xfe",
            (part % b"images") * 2000 + b"--b--\r\n",
            b'--b\r\nContent-Disposition: form-data; name="images"; filename="' + b"f" * 100_000,
            b"--b\r\n" + b"X: y\r\n" * 20_000 + b"\r\nx\r\n--b--\r\n",
            b'--b\r\nContent-Disposition: form-data; filename="a"\r\n\r\nx\r\n--b--\r\n',
            b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n"
            b"--c\r\n\r\n--c--\r\n--b--\r\n",
            b'--b\r\nContent-Disposition: form-data; name="images"; filename="../../a"\r\n'
            b"Content-Transfer-Encoding: base64\r\n\r\n!!!\r\n--b--\r\n",
            rng.randbytes(2000),
        )
    )


def body_attacks(client: RestClient, limit_s: float) -> list[Attack]:
    """All of this file, to any of the three routes."""
    media_of: dict[str, tuple[Make, tuple[str, ...]]] = {
        "broken JSON": (broken_json, ("application/json", "APPLICATION/JSON; charset=x")),
        "long JSON": (long_json, ("application/json",)),
        "odd words": (odd_words, ("application/json",)),
        "forms": (
            form,
            (
                "multipart/form-data; boundary=b",
                "multipart/form-data",
                "multipart/form-data; boundary=",
                "multipart/form-data; boundary=" + "b" * 5000,
                "application/x-www-form-urlencoded",
            ),
        ),
    }

    def send(make: Make, media: tuple[str, ...], rng: random.Random) -> str:
        headers = {"Content-Type": rng.choice(media)}
        return client.ask("POST", rng.choice(TARGETS), make(rng), headers).status

    return [
        Attack(
            kind=f"rest {kind}", send=partial(send, make, media), allowed=ALLOWED, limit_s=limit_s
        )
        for kind, (make, media) in media_of.items()
    ]


# PNG files as PngSuite has them, written here: every depth and colour type, and what is wrong.

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


# Small files that want to become large: by dimensions, frames, chunks, profiles, scans.

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


# Broken, odd and huge images over both protocols; what is answered must be whole and finite.

REST_STATUSES: Final = frozenset({"200", "413", "422", "429"})
RPC_STATUSES: Final = frozenset({"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})
NPY: Final = {"Accept": "application/x-npy"}
BOUNDARY: Final = "x" * 20
MEDIA: Final = ("image/jpeg", "image/png", "image/x-anything")
Draw = Callable[[random.Random], bytes]


def draws() -> Iterator[tuple[str, Draw]]:
    """Each kind of image, and how one is drawn."""

    def damaged(name: str, rng: random.Random) -> bytes:
        file_format = rng.choice(FORMATS)
        image = whole(
            file_format, rng.choice(MODES[file_format]), rng.randrange(NUM_SEEDS), rng.randrange(4)
        )
        return DAMAGES[name](image, rng)

    for name in DAMAGES:
        yield f"image {name}", partial(damaged, name)
    yield "image odd", lambda rng: rng.choice(oddities())[1]
    yield "image bomb", lambda rng: rng.choice(bombs())[1]


def rest_attacks(client: RestClient, limit_s: float) -> list[Attack]:
    """Every kind of image, in every form that a body may have."""

    def send(draw: Draw, rng: random.Random) -> str:
        target, body, headers = rng.choice(FORMS)(draw(rng), rng)
        answer = client.ask("POST", target, body, headers)
        if answer.status == "200" and answer.headers["content-type"] == NPY["Accept"]:
            _check_finite(np.load(BytesIO(answer.body), allow_pickle=False))
        return answer.status

    return [
        Attack(kind=f"rest {k}", send=partial(send, d), allowed=REST_STATUSES, limit_s=limit_s)
        for k, d in draws()
    ]


def rpc_attacks(channel: grpc.Channel, limit_s: float) -> list[Attack]:
    """Every kind of image, to both RPCs that take some."""

    def send(draw: Draw, rng: random.Random) -> str:
        images = [image_pb2.Image(encoded=draw(rng)) for _ in range(rng.choice((1, 1, 2)))]
        if rng.random() < 0.5:
            outputs = [embed_pb2.IMAGE_OUTPUT_CLS1, embed_pb2.IMAGE_OUTPUT_VALUES]
            request = embed_pb2.EmbedImagesRequest(images=images, outputs=outputs)
            code, raw = call(channel, "EmbedImages", request.SerializeToString(), limit_s)
            for item in embed_pb2.EmbedImagesResponse.FromString(raw).embeddings:
                _check_finite(np.frombuffer(item.values.data, "<f4"))
            return code
        classes = [segment_pb2.SegmentClass(name=name) for name in ("dog", "sky")]
        masks = segment_pb2.SegmentImagesRequest(images=images, classes=classes)
        return call(channel, "SegmentImages", masks.SerializeToString(), limit_s)[0]

    return [
        Attack(
            kind=f"grpc {k}",
            send=partial(checked_code, partial(send, d)),
            allowed=RPC_STATUSES,
            limit_s=limit_s,
        )
        for k, d in draws()
    ]


Form = tuple[str, bytes, dict[str, str]]


def _raw(image: bytes, rng: random.Random) -> Form:
    query = rng.choice(("", "?outputs=cls1", "?fit=aspect", "?resolution=448", "?normalize=false"))
    return f"/v1/images:embed{query}", image, {"Content-Type": rng.choice(MEDIA), **NPY}


def _mask(image: bytes, rng: random.Random) -> Form:
    style = rng.choice(("", "&format=overlay", "&background_threshold=0.1"))
    headers = {"Content-Type": rng.choice(MEDIA), "Accept": "image/png"}
    return f"/v1/images:segment?classes=dog,sky{style}", image, headers


def _form(image: bytes, rng: random.Random) -> Form:
    parts = b"".join(_part(data) for data in [image] * rng.choice((1, 1, 2)))
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return "/v1/images:embed", parts + f"--{BOUNDARY}--\r\n".encode(), headers


def _json(image: bytes, rng: random.Random) -> Form:
    texts = [base64.b64encode(image).decode()] * rng.choice((1, 1, 2))
    body = {"images": texts, "outputs": ["cls2", "patches"], "encoding": "base64"}
    return "/v1/images:embed", json.dumps(body).encode(), {"Content-Type": "application/json"}


FORMS: Final[Sequence[Callable[[bytes, random.Random], Form]]] = (_raw, _raw, _mask, _form, _json)


def _part(data: bytes) -> bytes:
    named = 'Content-Disposition: form-data; name="images"; filename="a"'
    return f"--{BOUNDARY}\r\n{named}\r\n\r\n".encode() + data + b"\r\n"


def _check_finite(values: "np.typing.NDArray[np.generic]") -> None:
    if not np.isfinite(values).all():
        raise Broken("an answer holds what is no number")


# Requests from the server's own OpenAPI document, right and wrong, by schemathesis.
#
# Its checks say whether each answer is one that the document promises: status, media type, headers,
# schema; whether wrong data was refused; and whether it was a server's error. It runs in a process
# of its own (`python -m benchmarks.attacks.documented PORT SEED LIMIT_S`) until its input is
# closed.

# 504 is what a caller gets who asks for an answer within a millisecond, and 501 who asks a package
# for maps that has no heads.
NO_FAULTS: Final = ["2xx", "3xx", "4xx", 501, 504]
MAX_EXAMPLES: Final = 40
UNKNOWN_HEADER: Final = "in header - object with unexpected properties"


@dataclass(frozen=True, slots=True)
class Document:
    """Where it is, and how long one of its requests may take."""

    port: int
    limit_s: float

    @property
    def base_url(self) -> str:
        """Of all routes."""
        return f"http://127.0.0.1:{self.port}"


def ask_until(stop: threading.Event, document: Document, books: Books, seed: int) -> None:
    """Let another process ask until told to stop, and take over its books."""
    command = [sys.executable, "-m", "tests.hostile.payloads"]
    command += [str(document.port), str(seed), str(document.limit_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            stop.wait()
            told, _ = process.communicate(timeout=document.limit_s)
        finally:
            process.kill()
    if process.returncode:
        books.note_defect("documented: the asking process broke", f"status {process.returncode}")
        return
    noted = json.loads(told)
    for kind, status, number, slowest_s in noted["statuses"]:
        books.note(kind, status, slowest_s, number=number)
    for name, examples in noted["defects"].items():
        for example in examples:
            books.note_defect(name, example)


def ask_once(stop: threading.Event, document: Document, books: Books, seed: int) -> None:
    """One run: boundary values of every field, and examples drawn from the seed."""
    config = configuration(document, seed)
    url = f"{document.base_url}/openapi.json"
    stream = from_schema(schemathesis.openapi.from_url(url, config=config)).execute()
    for event in stream:
        if isinstance(event, events.ScenarioFinished):
            note(event.recorder, event.phase.value, books)
        elif isinstance(event, (events.NonFatalError, events.FatalError)) and not stop.is_set():
            books.note_defect("documented: error", str(event)[:500])
        if stop.is_set():
            stream.stop()


def configuration(document: Document, seed: int) -> SchemathesisConfig:
    """All checks but one: data of the right form may still be no image, or a blank text."""
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "base-url": document.base_url,
            "request-timeout": document.limit_s,
            "continue-on-failure": True,
            "generation": {"max-examples": MAX_EXAMPLES, "no-shrink": True, "database": "none"},
            "phases": {"stateful": {"enabled": False}},
            "checks": {
                "positive_data_acceptance": {"enabled": False},
                "not_a_server_error": {"expected-statuses": NO_FAULTS},
            },
        }
    )


def note(recorder: ScenarioRecorder, phase: str, books: Books) -> None:
    """Count the answers of one operation, and what its checks found."""
    kind = f"documented {phase}"
    for interaction in recorder.interactions.values():
        response = interaction.response
        if response is None:
            books.note(kind, "no answer", 0.0)
            books.note_defect(f"{kind}: no answer", f"{interaction.request.uri}")
        else:
            books.note(kind, str(response.status_code), response.elapsed)
    for checks in recorder.checks.values():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info.failure
                if is_right_on_the_wire(failure.message):
                    continue
                what = f"{recorder.label}: {check.name}: {failure.title}"
                how = f"{failure.message} {check.failure_info.code_sample}"
                books.note_defect(f"{kind}: {what}", f"{how[:1000]} ... {how[-1000:]}")


def is_right_on_the_wire(message: str) -> bool:
    """Whether the accepted data was wrong only by types in the query, or by a further header.

    In a query everything is text: a string where a list should be is a list of one, and an empty
    list is nothing at all. HTTP ignores unknown headers.
    """
    wrong = [line for line in message.splitlines() if line.strip().startswith("- violates")]
    where = [line for line in message.splitlines() if line.startswith("Invalid component")]
    if where and all(line.endswith(UNKNOWN_HEADER) for line in where):
        return True
    in_query = bool(where) and all(line.endswith(" in query") for line in where)
    return in_query and bool(wrong) and all("violates `type`" in line for line in wrong)


def written(books: Books) -> str:
    """The books as JSON, with as many examples of a defect as there were defects."""
    statuses = [
        (kind, status, number, books.slowest_s[kind])
        for kind, counts in books.statuses.items()
        for status, number in counts.items()
    ]
    defects = {
        name: examples + [""] * (books.num_defects[name] - len(examples))
        for name, examples in books.defects.items()
    }
    return json.dumps({"statuses": statuses, "defects": defects})


def main(port: int, seed: int, limit_s: float) -> None:
    """Run all phases again and again, each time with another seed, until the input is closed."""
    books, stop = Books(), threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    while not stop.is_set():
        ask_once(stop, Document(port, limit_s), books, seed)
        seed += 1
    print(written(books))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
