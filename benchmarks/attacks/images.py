"""Images in six formats, whole at first and then damaged: cut, flipped, spliced, repeated."""

import random
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
# Pillow's modes that the format can hold.
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
NUM_SEEDS: Final = 4

Damage = Callable[[bytes, random.Random], bytes]


@cache
def whole(file_format: str, mode: str, seed: int, option: int = 0) -> bytes:
    """A small encoded image of smooth noise, the same for the same arguments."""
    draw = np.random.default_rng(seed)
    height, width = (int(n) for n in draw.integers(24, 120, 2))
    noise = Image.fromarray(draw.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    image = noise.resize((width, height), Image.Resampling.BICUBIC)
    if mode == "I;16":
        wide = np.asarray(image.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(wide)
    else:
        image = image.convert(mode)
    stream = BytesIO()
    options = SAVE_OPTIONS.get(file_format, ({},))
    image.save(stream, file_format, **options[option % len(options)])
    return stream.getvalue()


def any_whole(rng: random.Random) -> bytes:
    """One of the whole images."""
    file_format = rng.choice(FORMATS)
    mode = rng.choice(MODES[file_format])
    return whole(file_format, mode, rng.randrange(NUM_SEEDS), rng.randrange(4))


def cut(data: bytes, rng: random.Random) -> bytes:
    """The beginning alone."""
    return data[: rng.randrange(len(data) + 1)]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """A few bits turned round, most often near the beginning, where the structure is."""
    damaged = bytearray(data or b"\0")
    reach = len(damaged) if rng.random() < 0.5 else min(len(damaged), 200)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        damaged[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def splice(data: bytes, rng: random.Random) -> bytes:
    """Half of one image and half of another."""
    other = any_whole(rng)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """A piece several times over."""
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.randrange(1, 400)]
    return data[:start] + piece * rng.randrange(2, 50) + data[start:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """A piece of noise, of zeros or of ones."""
    length = rng.choice((1, 2, 4, 4, 16, 100))
    start = rng.randrange(max(1, len(data) - length))
    filling = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))
    return data[:start] + filling + data[start + length :]


def append(data: bytes, rng: random.Random) -> bytes:
    """Noise behind the end."""
    return data + rng.randbytes(rng.randrange(1, 5000))


DAMAGES: Final[dict[str, Damage]] = {
    "cut": cut,
    "bit flips": flip_bits,
    "spliced": splice,
    "repeated": repeat,
    "overwritten": overwrite,
    "appended": append,
}
