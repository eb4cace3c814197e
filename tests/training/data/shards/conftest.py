"""Small images, each of one colour that identifies it."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from training.data.captions import CaptionSampling
from training.data.crops import CropConfig
from training.data.shards.batches import ShardsConfig
from training.data.shards.sample import Sample

NUM_IMAGES = 23


def encode(number: int, *, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """An image whose colour encodes its number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 9 % 256, number * 5 % 256, 200)).save(buffer, kind)
    return buffer.getvalue()


def make_sample(number: int) -> Sample:
    """Every third has no caption, every second has a long one."""
    captions = {} if number % 3 == 2 else {"alt": f"image {number}"}
    if captions and number % 2 == 0:
        captions["gemini"] = f"a long account of image {number}"
    return Sample(
        key=f"{number:09d}",
        image=encode(number),
        suffix=".png",
        captions=captions,
        fields={"url": f"https://example.org/{number}", "license": "CC0-1.0"},
    )


@pytest.fixture(name="encode")
def encode_fixture() -> Callable[..., bytes]:
    """Make an image's file."""
    return encode


@pytest.fixture
def samples() -> list[Sample]:
    """Twenty-three samples."""
    return [make_sample(number) for number in range(NUM_IMAGES)]


@pytest.fixture
def image_folder(tmp_path: Path, samples: list[Sample]) -> Path:
    """The same samples as plain files in two sub-folders, in the order of their numbers."""
    folder = tmp_path / "images"
    for number, sample in enumerate(samples):
        part = folder / ("a" if number < 10 else "b")
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{sample.key}.png").write_bytes(sample.image)
        record = {**sample.fields, "captions": sample.captions}
        (part / f"{sample.key}.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def shards_config(tmp_path: Path) -> ShardsConfig:
    """Small crops in a small window."""
    return ShardsConfig(
        folder=tmp_path,
        captions=CaptionSampling(cls1=("alt",), cls2=("gemini",)),
        crops=CropConfig(global_size=28, num_local=2, local_size=14),
        window_shards=2,
        seed=5,
        num_workers=0,
    )


@pytest.fixture
def tar_of() -> Callable[..., None]:
    """Write files as a tar archive, as other programs do; a name ending in "/" is a folder."""

    def write(path: Path, files: dict[str, bytes], *, layout: int = tarfile.GNU_FORMAT) -> None:
        with tarfile.open(path, "w", format=layout) as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

    return write
