"""Plain JPEG images are decoded on a device as on the CPU, and all others on the CPU.

Without a GPU, nvImageCodec's own CPU decoder stands for it.
"""

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model import image_codec, jpeg_device
from model.image_codec import ImageError, ImageLimits, load_image, read_header
from model.jpeg_device import MAX_PIXELS, JpegDevice, JpegDeviceError, open_jpeg_device
from model.parity.inputs import FOLDER
from model.runtime.machine import this_hardware
from tests.model.stand_in_codec import StandInCodec

LIMITS = ImageLimits(max_bytes=2**24, max_pixels=2**24)
PHOTOGRAPHS = sorted((FOLDER / "gate").glob("*.jpg"))
SHEET = Path(__file__).parents[2] / "docs" / "images" / "photographs.jpg"
# Of grey levels, as the start allows it.
MAX_MEAN_LEVELS = 0.5
ORIENTATION = 0x0112
NUM_THREADS = 6


@pytest.fixture
def codec() -> StandInCodec:
    return StandInCodec()


@pytest.fixture
def device(codec: StandInCodec) -> JpegDevice:
    return JpegDevice(codec)


def photograph(size: tuple[int, int] = (448, 352), mode: str = "RGB") -> Image.Image:
    with Image.open(PHOTOGRAPHS[0]) as image:
        return image.convert(mode).resize(size)


def encode(image: Image.Image, file_format: str = "JPEG", **save: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **save)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(photograph(), exif=exif.tobytes())


def pixels(data: bytes, device: JpegDevice | None = None, **load: Any) -> NDArray[np.int16]:
    """Upright pixels, and the mode that the scaler gets."""
    loaded = load_image(data, LIMITS, device=device, **load)
    values: NDArray[np.int16] = np.asarray(loaded.upright(loaded.image)).astype(np.int16)
    return values


def levels(data: bytes, device: JpegDevice) -> NDArray[np.int16]:
    """Differences of the device's pixels from the CPU's."""
    difference: NDArray[np.int16] = np.abs(pixels(data, device) - pixels(data))
    return difference


TAKEN: dict[str, Callable[[], bytes]] = {
    "4:4:4": lambda: encode(photograph(), subsampling="4:4:4"),
    "4:2:2": lambda: encode(photograph(), subsampling="4:2:2"),
    "4:2:0": lambda: encode(photograph(), subsampling="4:2:0"),
    "odd sides": lambda: encode(photograph((447, 351))),
    "progressive": lambda: encode(photograph(), progressive=True),
    "restarts": lambda: encode(photograph(), restart_marker_rows=1),
    "grey": lambda: encode(photograph(mode="L")),
    "grey, progressive": lambda: encode(photograph(mode="L"), progressive=True),
    "turned": lambda: turned(6),
    "flipped": lambda: turned(2),
    "largest": lambda: encode(photograph((1920, 1088))),
}


def several_frames() -> bytes:
    return encode(photograph(), "MPO", save_all=True, append_images=[photograph()])


def sampled_by_four() -> bytes:
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411]
    return cv2.imencode(".jpg", np.asarray(photograph()), options)[1].tobytes()


def marked_as_rgb() -> bytes:
    """With a mark of Adobe that says RGB, beside that of JFIF."""
    data = encode(photograph())
    return data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + data[2:]


def numbered_from_0() -> bytes:
    """Components 0, 1 and 2, in the frame and in the scan."""
    data = bytearray(encode(photograph()))
    for marker, first, step in ((b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)):
        start = data.index(marker) + first
        for place in range(start, start + 3 * step, step):
            data[place] -= 1
    return bytes(data)


LEFT_TO_THE_CPU: dict[str, Callable[[], bytes]] = {
    "small": lambda: encode(photograph((255, 256))),
    "large": lambda: encode(photograph((1921, 1088))),
    "CMYK": lambda: encode(photograph(mode="CMYK")),
    "RGB": lambda: encode(photograph(), keep_rgb=True),
    "marked as RGB": marked_as_rgb,
    "components from 0": numbered_from_0,
    "4:1:1": sampled_by_four,
    "several frames": several_frames,
    "more behind it": lambda: encode(photograph()) + b"\0",
    "PNG": lambda: encode(photograph(), "PNG"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_plain_images_are_decoded_on_the_device_as_on_the_cpu(
    device: JpegDevice, codec: StandInCodec, name: str
) -> None:
    data = TAKEN[name]()
    given = pixels(data, device)
    assert codec.num_decoded == 1
    assert given.shape == pixels(data).shape  # also turned, and of one or three colours
    assert np.abs(given - pixels(data)).max() <= 2  # 0 with the same release of libjpeg-turbo


@pytest.mark.parametrize("name", LEFT_TO_THE_CPU)
def test_other_images_are_decoded_on_the_cpu(
    device: JpegDevice, codec: StandInCodec, name: str
) -> None:
    data = LEFT_TO_THE_CPU[name]()
    np.testing.assert_array_equal(pixels(data, device), pixels(data))
    assert codec.num_decoded == 0


def test_an_image_that_is_reduced_is_decoded_on_the_cpu(
    device: JpegDevice, codec: StandInCodec
) -> None:
    data = encode(photograph((1024, 800)))
    reduced = pixels(data, device, reduce_to=lambda _: (400, 400))
    assert (reduced.shape, codec.num_decoded) == ((400, 512, 3), 0)
    whole = pixels(data, device, reduce_to=lambda _: (600, 600))
    assert (whole.shape, codec.num_decoded) == ((800, 1024, 3), 1)


@pytest.mark.parametrize("path", [*PHOTOGRAPHS, SHEET], ids=lambda path: path.stem)
def test_photographs_differ_by_no_more_than_the_start_allows(
    device: JpegDevice, path: Path
) -> None:
    assert levels(path.read_bytes(), device).mean() <= MAX_MEAN_LEVELS


@pytest.mark.gpu
def test_a_gpu_decodes_as_the_cpu() -> None:
    if not this_hardware().gpus:
        pytest.skip("there is no NVIDIA GPU")
    gpu = open_jpeg_device()
    files = {name: make() for name, make in TAKEN.items()}
    files |= {path.stem: path.read_bytes() for path in (*PHOTOGRAPHS, SHEET)}
    found = {}
    for name, data in files.items():
        with Image.open(io.BytesIO(data)) as image:
            assert gpu.takes(image, data), name
            assert gpu.decode(image, data) is not None, name
        found[name] = levels(data, gpu)
        print(f"{name}: {found[name].mean():.3f} grey levels on average, {found[name].max()}")
    assert max(one.mean() for one in found.values()) <= MAX_MEAN_LEVELS, found


@pytest.mark.parametrize("fault", ["none", RuntimeError("out of memory"), TypeError("no argument")])
def test_what_the_device_does_not_decode_the_cpu_does(
    device: JpegDevice,
    codec: StandInCodec,
    fault: Exception | str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    codec.fault = fault
    data = encode(photograph())
    for _ in range(5):
        np.testing.assert_array_equal(pixels(data, device), pixels(data))
    assert codec.num_decoded == 5
    records = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.__dict__["fields"]["count"] for record in records] == [1, 2, 4]


def test_an_image_of_another_size_is_not_taken_from_the_device(
    device: JpegDevice, codec: StandInCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = encode(photograph((300, 300)))
    codec.__dict__["CodeStream"] = lambda _: codec._library.CodeStream(smaller)
    data = encode(photograph())
    np.testing.assert_array_equal(pixels(data, device), pixels(data))
    assert codec.num_decoded == 1


def broken() -> Iterator[tuple[str, bytes]]:
    good = encode(photograph())
    start = good.index(b"\xff\xda")
    yield "cut off", good[: len(good) // 2]
    yield "cut off, with an end", good[: len(good) // 2] + b"\xff\xd9"
    yield "no pixels", good[:start] + b"\xff\xd9"
    yield "no tables", good[:20] + good[start:]
    yield "noise", good[: start + 40] + bytes(300) + good[start + 340 :]
    yield "text", b"hello"


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in broken()])
def test_errors_of_broken_files_are_those_of_the_cpu(device: JpegDevice, data: bytes) -> None:
    def outcome(device: JpegDevice | None) -> object:
        try:
            return pixels(data, device).shape
        except ImageError as error:
            return str(error)

    assert outcome(device) == outcome(None)


def test_each_thread_has_a_decoder_of_its_own(device: JpegDevice, codec: StandInCodec) -> None:
    data = encode(photograph())
    expected = pixels(data)
    together = threading.Barrier(NUM_THREADS)

    def work(_: int) -> bool:
        together.wait(20)
        return all((pixels(data, device) == expected).all() for _ in range(10))

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        assert all(threads.map(work, range(NUM_THREADS)))
    assert codec.num_decoded == 10 * NUM_THREADS  # no image was left to the CPU
    assert codec.num_decoders == 1 + NUM_THREADS


def test_the_header_tells_the_memory_of_the_device(
    device: JpegDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (1000, 800)
    data, num_pixels = encode(photograph(size)), 1000 * 800
    on_cpu, on_device = 4 * num_pixels, 7 * num_pixels
    assert read_header(data, LIMITS) == ((800, 1000), 0)  # few bytes are not counted
    assert read_header(data, LIMITS, device=device) == ((800, 1000), on_device)
    reduced = read_header(data, LIMITS, device=device, reduce_to=lambda _: (400, 400))
    assert reduced == ((800, 1000), 0)
    # All coefficients of a progressive file are in memory, on the device's way too.
    several = encode(photograph(size), progressive=True, subsampling="4:4:4")
    assert read_header(several, LIMITS, device=device)[1] == on_device + 6 * num_pixels
    # Where the device needs more than an image may take, the CPU decodes.
    monkeypatch.setattr(image_codec, "SMALL_DECODING_BYTES", 0)
    tight = ImageLimits(max_bytes=2**24, max_pixels=num_pixels)
    assert read_header(data, tight, device=device) == ((800, 1000), on_cpu)
    monkeypatch.setattr(device, "decode", lambda *_: pytest.fail("decoded on the device"))
    assert load_image(data, tight, device=device).image.size == size


def test_the_largest_image_fits_into_the_default_memory(device: JpegDevice) -> None:
    assert MAX_PIXELS * jpeg_device.DEVICE_PIXEL_BYTES < 16 * 2**20


def test_a_machine_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = StandInCodec()

    def refuse(**_: object) -> None:
        raise RuntimeError("CUDA Runtime failure: '#35' at /source/device_utils.h:32")

    codec.Decoder = refuse  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "nvidia", SimpleNamespace(nvimgcodec=codec))
    with pytest.raises(JpegDeviceError) as found:
        open_jpeg_device()
    assert str(found.value).startswith(
        "no GPU can decode JPEG images (CUDA Runtime failure: '#35'); check it with nvidia-smi"
    )


def test_a_missing_library_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(JpegDeviceError, match=r"needs nvImageCodec .*tipserve\[gpu\]"):
        open_jpeg_device()


def test_the_library_has_what_is_called(codec: StandInCodec) -> None:
    """The names of the release that is installed, none of which the stand-in replaces."""
    library = codec._library
    calls: dict[str, Callable[..., object]] = {
        "Decoder": library.Decoder.__init__,
        "decode": library.Decoder.decode,
        "DecodeParams": library.DecodeParams.__init__,
        "cpu": library.Image.cpu,
    }
    words = {
        "Decoder": ("device_id", "max_num_cpu_threads", "backends", "options"),
        "decode": ("params",),
        "DecodeParams": ("apply_exif_orientation", "color_spec"),
        "cpu": (),
    }
    for name, call in calls.items():
        assert all(f"{word}:" in (call.__doc__ or "") for word in words[name]), name
