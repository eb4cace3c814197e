"""JPEG decoding on a GPU by nvImageCodec, for plain images of a size worth it.

`model.image_codec` checks an image, asks whether the device takes it, and decodes on the CPU what
it does not take or does not decode.
"""

import logging
import os
import threading
from typing import Any, Final

import numpy as np
from PIL import Image

LOGGER = logging.getLogger(__name__)

# Below that a call costs about as much as the CPU's decoder. Above, the memory that nvJPEG keeps in
# each thread, two bytes for each coefficient, would matter: the service does not count it.
MIN_PIXELS: Final = 256 * 256
MAX_PIXELS: Final = 1920 * 1088
# The pixels as the library copies them to the host, and Pillow's copy.
DEVICE_PIXEL_BYTES: Final = 3 + 4
END: Final = b"\xff\xd9"
# Columns and rows of brightness for each of colour: 4:4:4, 4:2:2, 4:4:0 and 4:2:0.
SAMPLINGS: Final = {(1, 1), (2, 1), (1, 2), (2, 2)}
ADOBE_YCBCR: Final = 1
# Chroma is interpolated, as by the CPU; by default the library repeats it.
OPTIONS: Final = ":fancy_upsampling=1"
# The library writes an error for each file that it does not decode.
VERBOSITY: Final = "PYNVIMGCODEC_VERBOSITY"
INSTALL: Final = "pip install 'tipserve[gpu]', or 'tipserve[gpu-cuda12]' for an older driver"


class JpegDeviceError(ValueError):
    """No GPU can decode JPEG images here; the message says why."""


class JpegDevice:
    """nvImageCodec's decoders on one GPU. Thread-safe.

    Each thread has a decoder of its own, because one that threads share loses images.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._own = threading.local()
        self._num_failed = 0
        self._decoder()

    def takes(self, image: Image.Image, data: bytes) -> bool:
        """Whether it decodes an image as the CPU does, as far as the header tells.

        Args:
            image: Opened and not decoded, and not to be reduced.
            data: Its file. One that does not end as a JPEG does is cut off, or has more behind it.
        """
        if image.format != "JPEG" or not MIN_PIXELS <= image.width * image.height <= MAX_PIXELS:
            return False
        return data.endswith(END) and (image.mode == "L" or _is_plain_colour(image))

    def decode(self, image: Image.Image, data: bytes) -> Image.Image | None:
        """Decode an image that it takes.

        Returns:
            An image of the same mode and size; None if the CPU has to decode it.
        """
        try:
            decoded = self._decode(data, is_grey=image.mode == "L")
        except Exception as error:  # as with the CPU's decoders, of nearly any type
            self._report(str(error))
            return None
        if decoded is None or decoded.size != image.size or decoded.mode != image.mode:
            self._report("the library gives no reason" if decoded is None else "another size")
            return None
        return decoded

    def _decode(self, data: bytes, *, is_grey: bool) -> Image.Image | None:
        library = self._library
        decoder = self._decoder()
        params = library.DecodeParams(
            apply_exif_orientation=False, color_spec=library.GRAY if is_grey else library.SRGB
        )
        decoded = decoder.decode(library.CodeStream(data), params=params)
        if decoded is None:
            return None
        pixels = np.ascontiguousarray(np.asarray(decoded.cpu()))
        del decoded  # else a copy without padding would be a third one
        # Of grey pixels Pillow would keep the library's memory; a copy frees it.
        return Image.fromarray(pixels[:, :, 0].copy() if is_grey else pixels)

    def _decoder(self) -> Any:
        """The decoder of this thread.

        Raises:
            RuntimeError: There is no GPU, or no driver that is new enough.
        """
        if not hasattr(self._own, "decoder"):
            library = self._library
            kinds = (library.HW_GPU_ONLY, library.GPU_ONLY, library.HYBRID_CPU_GPU)
            self._own.decoder = library.Decoder(
                max_num_cpu_threads=1,
                backends=[library.Backend(kind) for kind in kinds],
                options=OPTIONS,
            )
        return self._own.decoder

    def _report(self, reason: str) -> None:
        """Log the first failure, the second, the fourth, and so on: callers can send such files."""
        self._num_failed += 1
        if self._num_failed & (self._num_failed - 1) == 0:
            fields = {"reason": reason, "count": self._num_failed}
            LOGGER.warning("the CPU decodes a JPEG that the GPU did not", extra={"fields": fields})


def open_jpeg_device() -> JpegDevice:
    """The GPU of this process as a decoder.

    Raises:
        JpegDeviceError: The library is not installed, or there is no GPU that it can use.
    """
    os.environ.setdefault(VERBOSITY, "0")
    try:
        from nvidia import nvimgcodec  # noqa: PLC0415 - comes with the extra `gpu` only
    except (ImportError, OSError) as error:
        raise JpegDeviceError(
            f"to decode JPEG images, a GPU needs nvImageCodec ({error}): {INSTALL}"
        ) from error
    try:
        return JpegDevice(nvimgcodec)
    except RuntimeError as error:
        reason = str(error).partition(" at ")[0]  # without the place in the library's source
        raise JpegDeviceError(
            f"no GPU can decode JPEG images ({reason}); check it with nvidia-smi, and the driver: "
            "CUDA 13 needs 580 or newer, CUDA 12 (tipserve[gpu-cuda12]) 525; or set jpeg_device=cpu"
        ) from error


def _is_plain_colour(image: Image.Image) -> bool:
    """Whether the three colours are brightness and chroma, in a sampling that devices know."""
    layers: list[tuple[int, int, int, int]] = getattr(image, "layer", [])
    if image.mode != "RGB" or [layer[0] for layer in layers] != [1, 2, 3]:
        return False
    luma, *chroma = (layer[1:3] for layer in layers)
    has_usual_colours = image.info.get("adobe_transform", ADOBE_YCBCR) == ADOBE_YCBCR
    return has_usual_colours and luma in SAMPLINGS and chroma == [(1, 1), (1, 1)]
