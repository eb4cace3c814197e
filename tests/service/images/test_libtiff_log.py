"""A broken TIFF file is told to its caller, and to nobody else."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidRequest
from service.images.codec import ImageLimits, decode_image, silence_libtiff

LIMITS = ImageLimits(max_bytes=2_000_000, max_pixels=1_000_000)
SPEAK = "import sys; from PIL import Image; Image.open(sys.stdin.buffer).load()"


def broken_tiff() -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "TIFF", compression="tiff_deflate")
    data = bytearray(stream.getvalue())
    data[20:400] = bytes(380)
    return bytes(data)


def test_a_broken_tiff_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidRequest):
        decode_image(broken_tiff(), LIMITS, param="image")
    assert capfd.readouterr().err == ""


def test_it_would_without_us() -> None:
    # Otherwise the test above shows nothing.
    command = [sys.executable, "-c", SPEAK]
    result = subprocess.run(
        command, input=broken_tiff(), capture_output=True, timeout=60, check=False
    )
    assert result.returncode != 0
    first = result.stderr.splitlines()[0]
    assert (b"Decod" in first) == silence_libtiff()
