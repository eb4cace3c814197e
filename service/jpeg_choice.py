"""Chooses what decodes JPEG images, the CPU or a GPU, by a comparison at the start."""

import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import numpy as np
from PIL import Image

from model.image_codec import ImageLimits, load_image
from model.jpeg_device import JpegDevice, JpegDeviceError, open_jpeg_device
from model.parity.inputs import FOLDER
from service.images import JpegDecoding
from service.settings import Settings

logger = logging.getLogger(__name__)

# Landscape photographs of the package; the sheet has all four, and 0.75 megapixels.
PHOTOGRAPHS: Final = ("brushes", "fruits", "meadow", "sunset")
CELL: Final = (448, 420)
LIMITS: Final = ImageLimits(max_bytes=2**20, max_pixels=2**22)
ROUNDS: Final = 5
# As much as `jpeg_decode=fast` differs. Chroma that is repeated, or colours that are exchanged,
# differ by more.
MAX_MEAN_LEVELS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Comparison:
    """CPU milliseconds of all photographs, and grey levels between the two results."""

    cpu_ms: float
    gpu_ms: float
    mean_levels: float
    max_levels: int


def choose_jpeg_decoding(settings: Settings) -> JpegDecoding:
    """How a server or an engine of this process decodes JPEG images.

    It measures CPU time of this process, so call it before other threads work.

    Raises:
        JpegDeviceError: `jpeg_device` is `gpu`, and no GPU decodes as the CPU does.
    """
    if settings.jpeg_device == "cpu":
        return JpegDecoding(settings.jpeg_decode)
    try:
        device = open_jpeg_device()
        found = compare(device)
        _check(found)
    except JpegDeviceError as error:
        if settings.jpeg_device == "gpu":
            raise
        logger.info("JPEG images are decoded on the CPU: %s", error)
        return JpegDecoding(settings.jpeg_decode)
    is_gpu = settings.jpeg_device == "gpu" or found.gpu_ms < found.cpu_ms
    where = "GPU" if is_gpu else "CPU, which takes less CPU time than with the GPU"
    fields = {name: round(value, 3) for name, value in asdict(found).items()}
    logger.info("JPEG images are decoded on the %s", where, extra={"fields": fields})
    return JpegDecoding(settings.jpeg_decode, device if is_gpu else None)


def compare(device: JpegDevice) -> Comparison:
    """Decode photographs on the device and on the CPU.

    Raises:
        JpegDeviceError: The device does not decode one.
    """
    cpu_ms = gpu_ms = 0.0
    differences = []
    for data in _photographs():
        expected = load_image(data, LIMITS).image
        with Image.open(io.BytesIO(data)) as image:
            given = device.decode(image, data) if device.takes(image, data) else None
        if given is None:
            raise JpegDeviceError(
                "the GPU does not decode a photograph; if the log names no reason, nvJPEG is "
                "missing or its CUDA version is another one than nvImageCodec's"
            )
        difference = np.asarray(given).astype(np.int16) - np.asarray(expected)
        differences.append(np.abs(difference).ravel())
        load = partial(load_image, data, LIMITS)
        times = [
            (_milliseconds(load), _milliseconds(partial(load, device=device)))
            for _ in range(ROUNDS)
        ]
        cpu_ms += min(cpu for cpu, _ in times)
        gpu_ms += min(gpu for _, gpu in times)
    levels = np.concatenate(differences)
    return Comparison(cpu_ms, gpu_ms, float(levels.mean()), int(levels.max()))


def _check(found: Comparison) -> None:
    if found.mean_levels > MAX_MEAN_LEVELS:
        raise JpegDeviceError(
            f"the GPU's pixels of photographs differ from the CPU's by {found.mean_levels:.2f} "
            f"grey levels on average, at most {MAX_MEAN_LEVELS} are allowed; set jpeg_device=cpu"
        )


def _photographs() -> Iterator[bytes]:
    """Two files as they are, and a sheet of four."""
    files = [(FOLDER / "gate" / f"{name}.jpg").read_bytes() for name in PHOTOGRAPHS]
    yield from files[:2]
    sheet = Image.new("RGB", (2 * CELL[0], 2 * CELL[1]))
    for index, data in enumerate(files):
        with Image.open(io.BytesIO(data)) as image:
            sheet.paste(image.resize(CELL), (index % 2 * CELL[0], index // 2 * CELL[1]))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=90)
    yield stream.getvalue()


def _milliseconds(work: Callable[[], object]) -> float:
    """CPU time of all threads, also of those of the library."""
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started)
