"""Shards of web-like photos: 640 x 480 JPEGs with two captions each."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.shards.sample import BadSample, Sample
from training.data.shards.writing import ShardPlan, build_shards

WIDTH, HEIGHT, QUALITY = 640, 480, 85
_CAPTION = "a photo of a mountain meadow in summer with a stream that runs between grey rocks"


class PhotoItems:
    """Random crops of photos at the usual size of web images in data sets."""

    def __init__(self, files: list[Path], count: int) -> None:
        self._photos = [_reduced(file) for file in files]
        self._count = count

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> str:
        """Return a constant: the shards are temporary."""
        return "photos"

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BadSample]]:
        """Crop and encode images from `start`."""
        for index in range(start, stop):
            rng = np.random.default_rng(index)
            photo = self._photos[index % len(self._photos)]
            left = int(rng.integers(photo.width - WIDTH + 1))
            top = int(rng.integers(photo.height - HEIGHT + 1))
            buffer = io.BytesIO()
            cut = photo.crop((left, top, left + WIDTH, top + HEIGHT))
            cut.save(buffer, "JPEG", quality=QUALITY)
            captions = {"alt": f"photo {index}", "gemini": _CAPTION, "paligemma": _CAPTION[:30]}
            sample = Sample(
                key=f"{index:09d}", image=buffer.getvalue(), suffix=".jpg", captions=captions
            )
            yield str(index), sample


def _reduced(file: Path) -> Image.Image:
    """Reduce a photo to twice the crop size, so that crops have the detail of whole images."""
    image = Image.open(file).convert("RGB")
    factor = 2 * max(WIDTH / image.width, HEIGHT / image.height)
    return image.resize((round(image.width * factor), round(image.height * factor)))


def build_photo_shards(files: list[Path], folder: Path, *, count: int) -> float:
    """Write shards of some hundred photos; returns the mean size of their files in kB.

    Raises:
        FileNotFoundError: The folder has no photos.
    """
    if not files:
        raise FileNotFoundError("no photos: run `python -m training data` first, or name --data")
    plan = ShardPlan(kind="photos", shard_size=100)
    manifest = build_shards(PhotoItems(files, count), folder, plan, is_shown=False)
    return sum(shard.num_bytes for shard in manifest.shards) / count / 1000
