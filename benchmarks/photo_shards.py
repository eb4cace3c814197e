"""Shards of photos as the web has them: JPEGs of 640 x 480 pixels with two captions each."""

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
    """Random cuts of some photos at the size that web images have in data sets."""

    def __init__(self, files: list[Path], count: int) -> None:
        self._photos = [_reduced(file) for file in files]
        self._count = count

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> str:
        """The same for all: the shards are thrown away."""
        return "photos"

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BadSample]]:
        """Cut and encode images `start` and on."""
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
    """A photo at twice the size of the cuts, so that these hold the detail of whole images."""
    image = Image.open(file).convert("RGB")
    factor = 2 * max(WIDTH / image.width, HEIGHT / image.height)
    return image.resize((round(image.width * factor), round(image.height * factor)))


def build_photo_shards(files: list[Path], folder: Path, *, count: int) -> float:
    """Write shards of some hundred photos; returns the mean size of their files in kB.

    Raises:
        FileNotFoundError: No photo to cut them from.
    """
    if not files:
        raise FileNotFoundError("no photos: run `python -m training data` first, or name --data")
    plan = ShardPlan(kind="photos", shard_size=100)
    manifest = build_shards(PhotoItems(files, count), folder, plan, is_shown=False)
    return sum(shard.num_bytes for shard in manifest.shards) / count / 1000
