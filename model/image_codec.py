"""Encoded images to upright 8-bit RGB, for serving and training alike.

Limits are checked on the header, before memory for pixels is allocated. Every exception of a
decoder becomes an `ImageError`. Does not know models, requests or data sets.

Transparent parts are laid on white, 16-bit samples are reduced to 8 bits, and the first frame of an
animation counts.

Shape legend: H W pixels of the upright image.
"""

import ctypes
import math
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from model.installation import install

HAS_HEIF: Final = find_spec("pi_heif") is not None  # the extra `heif`
if HAS_HEIF:
    import pi_heif

# HEIF is HEIC here, what iPhones write. AVIF is missing on purpose: Pillow's decoder allocates the
# size that the AV1 stream declares, whatever the header says: a file of 778 bytes that declares
# 64 x 48 pixels was decoded with 2400 x 2000, and 16,384 x 16,384 are possible.
AVIF_BRANDS: Final = (b"avif", b"avis")
HEIC_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"mif1")
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(["HEIF"] if HAS_HEIF else []))
# MPO is a JPEG with further images behind the first; some cameras write it.
REDUCIBLE: Final = {"JPEG", "MPO"}
ORIENTATION_TAG: Final = 0x0112
# The transposition that makes an image upright, by the value of its EXIF tag.
UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Bytes of a pixel in Pillow's memory, by mode; 4 for all others.
PIXEL_BYTES: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
# Those that swap height and width.
SIDEWAYS: Final = {UPRIGHT[tag] for tag in (5, 6, 7, 8)}
WHITE: Final = (255, 255, 255)

# Most reads of one file while its headers are parsed or it is decoded. Pillow reads each segment,
# chunk or sub-block by itself, in Python: 16 MB of empty segments took 12 CPU seconds. A PNG in
# chunks of 8 kB, as libpng writes it, needs some 500 reads for each MB.
MAX_READS: Final = 50_000
# Most pixels of a TIFF's tile in an image that is smaller. libtiff allocates whole tiles, so a file
# of 150 bytes with one pixel and a huge tile took 2 GiB.
MAX_TILE_PIXELS: Final = 1024 * 1024
TILE_WIDTH_TAG: Final = 322
TILE_HEIGHT_TAG: Final = 323
BITS_TAG: Final = 258
COLOURS_TAG: Final = 262
YCBCR: Final = 6
STRIP_ROWS_TAG: Final = 278
# Pixels of an image that are converted at once.
BAND_PIXELS: Final = 512 * 1024
# Most bytes that decoding one image may take, for each pixel of `max_pixels`. Usual files take 1 to
# 4 for each of their own pixels; a WebP file of 1.6 kB took 610 MiB with 40 megapixels. With 4.4,
# all that phones write as HEIC and WebP is read, and the default model keeps within 512 MiB.
DECODING_BYTES: Final = 4.4
# Decoding that takes at most this is not counted: there are only so many threads. A pixel takes at
# most 12 bytes, but for formats whose files may hold more than the image has.
SMALL_DECODING_BYTES: Final = 4 * 1024 * 1024
SMALL_PIXELS: Final = SMALL_DECODING_BYTES // 12
UNBOUNDED: Final = {"TIFF", "HEIF"}
# libwebp's canvas and the one before it, and Pillow's copy; 4 bytes each. See `_FirstFrame`.
WEBP_PIXEL_BYTES: Final = 12
# libde265's frame, libheif's planes and pixels, Pillow's bytes and image: 7.2 were measured for
# usual files, 12.4 with transparency and without subsampling, 20.4 with 10 bits a sample.
HEIF_PIXEL_BYTES: Final = 14
DEEP_HEIF_PIXEL_BYTES: Final = 21
# Each scan of a JPEG costs a pass over every pixel, and may have 30 bytes: without a bound a file
# of 600 kB takes minutes within all other limits. Cameras and optimizers write about ten scans;
# libtiff has the same bound of 100 for JPEG data in TIFF files.
MAX_SCANS: Final = 100
JPEG_START: Final = b"\xff\xd8"
SCAN_MARKER: Final = 0xDA
SEQUENTIAL_FRAMES: Final = (0xC0, 0xC1)
OTHER_FRAMES: Final = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEGMENTS: Final = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, 0xDA)) - OTHER_FRAMES
# Marker and header length of a scan with one to four components. Compressed data cannot contain the
# marker; the length makes a match in a profile or a comment improbable.
SCAN: Final = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e]")
ISPE: Final = re.compile(rb"ispe....(.{8})", re.DOTALL)
LIBTIFF: Final = re.compile(r"/\S*/libtiff[^/\s]*\.so[.\d]*")

Box = tuple[float, float, float, float]
Conversion = Callable[[Image.Image], Image.Image]
# From a height and width to others.
SizeMap = Callable[[tuple[int, int]], tuple[int, int]]


class ImageError(ValueError):
    """The data is not an image of a supported format, or broken."""


class ImageTooLarge(ImageError):
    """The image exceeds a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Bounds of an image: bytes of its file, pixels that its header declares, its shorter side."""

    max_bytes: int
    max_pixels: int
    min_side: int = 1

    def __post_init__(self) -> None:
        """Check that some image is within the limits."""
        if self.max_bytes < 1 or self.min_side < 1 or self.max_pixels < self.min_side**2:
            raise ValueError("limits: max_bytes, max_pixels and min_side allow no image")

    @property
    def max_decoding_bytes(self) -> int:
        """Memory that decoding an image may take."""
        return most_decoding_bytes(self.max_pixels)


def most_decoding_bytes(max_pixels: int) -> int:
    """Memory that decoding an image may take, where so many pixels are allowed."""
    return math.ceil(DECODING_BYTES * max_pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """A decoded image as its file stores it: perhaps sideways, perhaps reduced.

    Attributes:
        image: Of any mode; see `scale_flat`.
        box: Left, top, right and bottom of the content, in pixels of `image`; a reduced image's may
            end within its last row and column.
        size_hw: Height and width of the upright image at full size.
        turn: Transposition that makes it upright; None if it is upright.
    """

    image: Image.Image
    box: Box
    size_hw: tuple[int, int]
    turn: Image.Transpose | None

    def stored_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Convert height and width of the upright image to those of the stored one, or back."""
        return _turned(size_hw, self.turn)

    def upright(self, image: Image.Image) -> Image.Image:
        """Turn `image`, or a scaled copy of it, upright."""
        return image if self.turn is None else image.transpose(self.turn)


def read_header(
    data: bytes, limits: ImageLimits, *, reduce_to: SizeMap | None = None
) -> tuple[tuple[int, int], int]:
    """Read from the header what decoding will take.

    Args:
        data: An encoded image.
        limits: What is checked.
        reduce_to: As `load_image` will get it.

    Returns:
        Height and width, before EXIF orientation; and the bytes that `load_image` takes, or 0 if
        they are at most `SMALL_DECODING_BYTES`.

    Raises:
        ImageError: Not a supported image.
        ImageTooLarge: Over a limit.
    """
    with _decoder_errors(FORMATS), _open(data, limits, FORMATS) as image:
        size_hw = image.height, image.width
        if math.prod(size_hw) <= SMALL_PIXELS and image.format not in UNBOUNDED:
            return size_hw, 0
        _, num_bytes = _plan(image, data, limits, reduce_to)
        return size_hw, num_bytes if num_bytes > SMALL_DECODING_BYTES else 0


def upright_size(data: bytes) -> tuple[int, int]:
    """Read height and width of the upright image from the header; ImageError if there is none."""
    with _decoder_errors(FORMATS), Image.open(_BoundedReader(data), formats=FORMATS) as image:
        return _turned((image.height, image.width), _turn(image))


def load_image(
    data: bytes,
    limits: ImageLimits,
    *,
    reduce_to: SizeMap | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> LoadedImage:
    """Decode an image.

    Args:
        data: An encoded image.
        limits: Checked before any pixel is decoded.
        reduce_to: Maps the upright height and width to the least height and width that must remain.
            A JPEG is then decoded at a half, a quarter or an eighth of its size where possible.
        formats: Accepted formats, a subset of `FORMATS`.

    Raises:
        ImageError: Not an image of these formats, or broken.
        ImageTooLarge: Over a limit.
    """
    with _decoder_errors(formats), _open(data, limits, formats) as image:
        stored_hw = image.height, image.width
        if has_too_many_scans(data):
            raise ImageTooLarge(f"the JPEG has more than {MAX_SCANS} scans; encode it again")
        box, _ = _plan(image, data, limits, reduce_to)
        turn = _decode(image)
        if image.format not in REDUCIBLE:  # decoding may change the size that the header has
            stored_hw, box = (image.height, image.width), (0, 0, image.width, image.height)
        size_hw = _turned(stored_hw, turn)
        return LoadedImage(image=image, box=box, size_hw=size_hw, turn=turn)


def decode_image(
    data: bytes,
    limits: ImageLimits,
    *,
    reduce_to: SizeMap | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> NDArray[np.uint8]:
    """Decode an image as `load_image` does, to upright uint8 RGB [H, W, 3].

    Raises:
        ImageError: Not an image of these formats, or broken.
        ImageTooLarge: Over a limit.
    """
    loaded = load_image(data, limits, reduce_to=reduce_to, formats=formats)
    image = loaded.upright(loaded.image)
    del loaded  # else a turned image is in memory twice
    pixels_HW3 = np.empty((image.height, image.width, 3), np.uint8)
    # In bands, because Pillow would convert to four bytes a pixel, and then copy.
    with _decoder_errors(formats):
        _, convert = _flattening(image)
        for band in _bands(image):
            pixels_HW3[band[1] : band[3]] = np.asarray(convert(image.crop(band)).convert("RGB"))
    return pixels_HW3


def scale_flat(
    image: Image.Image, size_hw: tuple[int, int], resample: Image.Resampling, box: Box
) -> Image.Image:
    """Scale the part `box` of an image of any mode, and make it opaque RGB or L.

    Transparent parts are laid on white. The result is that of scaling the opaque image, which would
    take up to four times the memory: Pillow, too, scales rows first and rounds to 8 bits before it
    scales columns.

    Raises:
        ImageError: Its colours cannot be converted.
    """
    height, width = size_hw
    if image.mode in {"RGB", "L"} and not image.has_transparency_data:
        return image.resize((width, height), resample, box)
    left, top, right, bottom = box
    with _decoder_errors(FORMATS):
        mode, convert = _flattening(image)
        narrow = Image.new(mode, (width, image.height))
        # An RGBA copy of the whole image would take 160 MB for 40 megapixels.
        for band in _bands(image):
            num_rows = band[3] - band[1]
            row_box = (left, 0, right, num_rows)
            flat = convert(image.crop(band))
            narrow.paste(flat.resize((width, num_rows), resample, row_box), (0, band[1]))
    return narrow.resize((width, height), resample, (0, top, width, bottom))


def _flattening(image: Image.Image) -> tuple[str, Conversion]:
    """The mode of the flat image, and what makes it of a part of the image."""
    if image.has_transparency_data:
        return "RGB", _on_white
    if image.mode.startswith("I;16"):
        return "L", lambda band: Image.fromarray((np.asarray(band) >> 8).astype(np.uint8))
    if image.mode == "I":
        return "L", lambda band: _to_grey(np.asarray(band) / 257)
    if image.mode == "F":
        brightest = 0.0
        for box in _bands(image):
            samples_hW = np.asarray(image.crop(box))
            brightest = max(brightest, float(np.nan_to_num(samples_hW).max(initial=0)))
        factor = np.float64(255 if brightest <= 1 else 1)
        return "L", lambda band: _to_grey(np.asarray(band) * factor)
    mode = "L" if image.mode == "1" else "RGB"
    return mode, lambda band: band.convert(mode)


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of bands of whole rows, from the top."""
    num_rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        yield 0, top, image.width, min(top + num_rows, image.height)


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("LA") if image.mode == "La" else image
    if layer.mode != "RGBA":  # converting RGBA to RGBA would copy it
        layer = layer.convert("RGBA")
    background = Image.new("RGB", layer.size, WHITE)
    background.paste(layer, mask=layer)
    return background


def has_too_many_scans(data: bytes) -> bool:
    """Whether the data is a JPEG with more than `MAX_SCANS` scans."""
    if not data.startswith(JPEG_START) or _has_one_scan(data):
        return False
    return sum(1 for _ in SCAN.finditer(data)) > MAX_SCANS


def silence_libtiff() -> bool:
    """Remove the error handler of the libtiff by which Pillow reads TIFF; False if it is not found.

    libtiff writes errors in a file to standard error, between the lines of the log and as often as
    clients like. The client's error response contains the reason.
    """
    try:
        mapped = LIBTIFF.search(Path("/proc/self/maps").read_text(encoding="utf-8"))
        if mapped is None:
            return False
        set_handler = ctypes.CDLL(mapped.group()).TIFFSetErrorHandler
    except (OSError, AttributeError):
        return False
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    set_handler(None)
    return True


# `ImageLimits` bounds the pixels of every image; Pillow's own limit would warn or raise below it.
Image.MAX_IMAGE_PIXELS = None
if HAS_HEIF:
    # One thread, as other formats have: the pool decodes several images at a time.
    pi_heif.register_heif_opener(
        thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
    )
# Register the formats now. Pillow would do it at the first image, in any thread.
Image.init()
silence_libtiff()


def _open(data: bytes, limits: ImageLimits, formats: tuple[str, ...]) -> Image.Image:
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"the image has {len(data)} bytes, at most {limits.max_bytes} allowed")
    _check_brand(data, formats)
    image = Image.open(_BoundedReader(data), formats=formats)
    size = f"the image has {image.width} x {image.height} pixels"
    if image.width * image.height > limits.max_pixels:
        raise ImageTooLarge(f"{size}, at most {limits.max_pixels} allowed; send a smaller one")
    if min(image.width, image.height) < limits.min_side:
        raise ImageError(f"{size}, each side needs at least {limits.min_side}")
    if isinstance(image, TiffImageFile):
        _check_tile(image)
    return image


def _check_brand(data: bytes, formats: tuple[str, ...]) -> None:
    """Name what to change where a phone's format is not read."""
    if data[4:8] != b"ftyp":
        return
    brand = data[8:12]
    if brand in AVIF_BRANDS:
        raise ImageError(f"AVIF is not read; send one of {', '.join(formats)}")
    if brand in HEIC_BRANDS and not HAS_HEIF:
        raise ImageError(
            f"HEIC is not read here; send a JPEG, or install it on the server: {install('heif')}"
        )


class _BoundedReader(BytesIO):
    """A file in memory that ends in an error after `MAX_READS` reads."""

    num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and count it."""
        self.num_reads += 1
        if self.num_reads > MAX_READS:
            raise ImageTooLarge("the file has too many small parts; encode the image again")
        return super().read(size)


def _decode(image: Image.Image) -> Image.Transpose | None:
    """Decode an image without Pillow's further copies, and return what makes it upright."""
    if isinstance(image, TiffImageFile):
        turn = _turn(image)
        if turn is not None:
            del image.getexif()[ORIENTATION_TAG]
        image.load()
        vars(image)["_size"] = image.im.size
        return turn
    if image.format == "WEBP":
        vars(image)["_decoder"] = _FirstFrame(vars(image)["_decoder"])
    image.load()
    vars(image).pop("_heif_file", None)
    return _turn(image)


class _FirstFrame:
    """Pillow's decoder of WebP, whose canvases are freed when the first frame has been copied."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def get_next(self) -> tuple[bytes, int] | None:
        """Pixels and time stamp, once; None if they are broken."""
        decoder, self._decoder = self._decoder, None
        frame: tuple[bytes, int] | None = decoder.get_next()
        return frame


def _check_tile(image: TiffImageFile) -> None:
    tile_hw = [image.tag_v2.get(tag, 0) for tag in (TILE_HEIGHT_TAG, TILE_WIDTH_TAG)]
    if math.prod(tile_hw) > max(image.width * image.height, MAX_TILE_PIXELS):
        raise ImageTooLarge("the TIFF has tiles larger than its image; encode it again")


def _plan(
    image: Image.Image, data: bytes, limits: ImageLimits, reduce_to: SizeMap | None
) -> tuple[Box, int]:
    """Let the decoder reduce a JPEG; returns the box of its content and the peak of memory."""
    coefficient_bytes, num_coded = _coefficient_bytes(image, data), _num_coded(image, data)
    box = _reduce(image, reduce_to)
    pixel_bytes = PIXEL_BYTES.get(image.mode, 4)
    if image.format == "WEBP":
        pixel_bytes = WEBP_PIXEL_BYTES
    if image.format == "HEIF":
        is_deep = image.info.get("bit_depth", 8) > 8
        pixel_bytes = DEEP_HEIF_PIXEL_BYTES if is_deep else HEIF_PIXEL_BYTES
    num_bytes = max(num_coded, image.width * image.height) * pixel_bytes + coefficient_bytes
    if isinstance(image, TiffImageFile):
        num_bytes += _strip_bytes(image)
    if num_bytes > limits.max_decoding_bytes:
        raise ImageTooLarge(
            f"decoding this {image.format} takes {num_bytes} bytes of memory, at most "
            f"{limits.max_decoding_bytes} allowed; send a smaller image, or a baseline JPEG or PNG"
        )
    return box, num_bytes


def _num_coded(image: Image.Image, data: bytes) -> int:
    """Pixels of the largest image in a HEIC file; libheif decodes none larger than its `ispe`."""
    if image.format != "HEIF":
        return 0
    return max((math.prod(struct.unpack(">II", size)) for size in ISPE.findall(data)), default=0)


def _coefficient_bytes(image: Image.Image, data: bytes) -> int:
    """Memory for the coefficients of a JPEG, of which libjpeg keeps all if it has several scans."""
    if image.format not in REDUCIBLE or _has_one_scan(data):
        return 0
    factors: list[int] = [rows * columns for _, rows, columns, _ in image.layer]  # type: ignore[attr-defined]
    return 2 * math.ceil(image.width * image.height * sum(factors) / max(factors))


def _strip_bytes(image: TiffImageFile) -> int:
    """Memory for one strip or tile of a TIFF, which libtiff decodes as a whole."""
    if not image.tile or image.tile[0].codec_name != "libtiff":
        return 0
    tags = image.tag_v2
    num_rows = min(tags.get(STRIP_ROWS_TAG, image.height), image.height)
    num_pixels = tags.get(TILE_WIDTH_TAG, image.width) * tags.get(TILE_HEIGHT_TAG, num_rows)
    # libtiff makes RGBA of YCbCr.
    least = 4 if tags.get(COLOURS_TAG) == YCBCR else 1
    return int(num_pixels) * max(least, sum(tags.get(BITS_TAG, (1,))) // 8)


@contextmanager
def _decoder_errors(formats: tuple[str, ...]) -> Iterator[None]:
    """Turn any exception of a decoder into an `ImageError`; decoders raise nearly any type."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"the image cannot be decoded; it is broken or not one of {', '.join(formats)}"
        ) from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # with a broken EXIF block the image itself can still be good
        return None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _turned(size_hw: tuple[int, int], turn: Image.Transpose | None) -> tuple[int, int]:
    """Height and width after a transposition."""
    return size_hw[::-1] if turn in SIDEWAYS else size_hw


def _reduce(image: Image.Image, reduce_to: SizeMap | None) -> Box:
    """Let a JPEG be decoded at a part of its size, and return the box of its content."""
    stored_hw = image.height, image.width
    if reduce_to is not None and image.format in REDUCIBLE:
        turn = _turn(image)
        height, width = _turned(reduce_to(_turned(stored_hw, turn)), turn)
        # The decoder never reduces below the requested size.
        reduced = image.draft(None, (width, height))
        if reduced is not None:
            return reduced[1]
    return (0, 0, stored_hw[1], stored_hw[0])


def _has_one_scan(data: bytes) -> bool:
    """Whether the first scan has all components of a sequential JPEG: no scan can follow."""
    position, num_components = len(JPEG_START), 0
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == SCAN_MARKER:
            return data[position + 4] == num_components
        if marker not in SEGMENTS:
            return False
        if marker in SEQUENTIAL_FRAMES:
            num_components = data[position + 9]
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return False


def _to_grey(values_HW: NDArray[np.floating]) -> Image.Image:
    """Round values to 8 bits; NaN becomes black."""
    return Image.fromarray(np.nan_to_num(values_HW).clip(0, 255).astype(np.uint8))
