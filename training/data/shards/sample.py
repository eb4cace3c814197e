"""One image with its captions, broken samples, and counts of a data set.

The files of one sample share their name up to the first dot of the last part of the path, as in
every WebDataset. Knows no tar files.

Legend: H W pixels of the upright image.
"""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from model.image_codec import ImageError, ImageLimits, decode_image
from model.labelled.captions import read_captions, source_of, tally
from training.data.crops import PATCH

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_LOG = logging.getLogger(__name__)


class BadSample(ValueError):
    """A sample is unusable; the message gives the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image with its captions and metadata.

    Attributes:
        key: Name in the data set; without a dot in its last part.
        image: The encoded image, unchanged.
        suffix: Suffix of the image file, one of `IMAGE_SUFFIXES`.
        captions: By source: alt, paligemma, gemini, ...
        fields: Other metadata, such as url and license.
        left_out: A reason for each caption that cannot be read.
    """

    key: str
    image: bytes
    suffix: str
    captions: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def as_webdataset(self) -> dict[str, str | bytes]:
        """The sample as WebDataset writes it: its key, and its files by suffix."""
        record = {**self.fields, "captions": dict(self.captions)}
        text = json.dumps(record, ensure_ascii=False, sort_keys=True)
        return {"__key__": self.key, self.suffix[1:]: self.image, "json": text.encode()}


def split_name(name: str) -> tuple[str, str]:
    """Split a file's name into a sample's key and the suffix, in lower case, with its dot."""
    path = PurePosixPath(name)
    stem, dot, suffix = path.name.partition(".")
    key = str(path.with_name(stem)) if stem else name
    return key, (dot + suffix).lower()


def sample_from_members(members: Mapping[str, bytes]) -> Sample:
    """Read a sample from its files by name.

    Reads our shards and those of other tools. Captions that cannot be read are left out.

    Raises:
        BadSample: No image among them.
    """
    by_suffix = {split_name(name)[1]: (name, content) for name, content in members.items()}
    suffix = next((s for s in IMAGE_SUFFIXES if s in by_suffix), None)
    if suffix is None:
        raise BadSample(f"no image among {sorted(members)}; {IMAGE_SUFFIXES} are read")
    name, image = by_suffix[suffix]
    found = read_captions({suffix: content for suffix, (_, content) in by_suffix.items()})
    return Sample(
        key=split_name(name)[0],
        image=image,
        suffix=suffix,
        captions=found.by_source,
        fields=found.fields,
        left_out=found.left_out,
    )


class BrokenList:
    """The distinct broken samples so far; with a file, the list survives restarts of the run."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._reasons: dict[str, str] = {}
        if path is not None and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            self._reasons = {row["place"]: row["reason"] for row in map(json.loads, lines)}

    def __len__(self) -> int:
        return len(self._reasons)

    def reasons(self) -> str:
        """The most frequent reasons with their counts."""
        return tally(Counter(self._reasons.values()))

    def add(self, place: str, reason: str) -> None:
        """Log and record a sample if it is new."""
        if place in self._reasons:
            return
        self._reasons[place] = reason
        _LOG.warning("skipped broken sample %d: %s: %s", len(self), place, reason)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"place": place, "reason": reason}) + "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """Counts of images, of those with a caption, and with one of each source.

    `left_out` counts the captions that cannot be read, by the reason.
    """

    num_images: int = 0
    num_captioned: int = 0
    caption_sources: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """A line about the images and their captions."""
        rest = f"; captions left out: {tally(self.left_out)}" if self.left_out else ""
        if not self.num_captioned:
            return f"{self.num_images} images without captions{rest}"
        sources = ", ".join(f"{source} {count}" for source, count in self.caption_sources.items())
        captioned = f"{self.num_captioned} of them with captions ({sources})"
        return f"{self.num_images} images, {captioned}{rest}"


def summarize(samples: Iterable[Sample | BadSample]) -> DataSummary:
    """Count samples and their captions; broken samples are images without captions."""
    images = captioned = 0
    sources, left_out = Counter[str](), Counter[str]()
    for sample in samples:
        images += 1
        if isinstance(sample, Sample):
            captioned += bool(sample.captions)
            sources.update({source_of(name) for name in sample.captions})
            left_out.update(sample.left_out)
    return DataSummary(
        num_images=images,
        num_captioned=captioned,
        caption_sources=dict(sorted(sources.items())),
        left_out=dict(sorted(left_out.items())),
    )


FORMATS: Final = ("JPEG", "PNG", "WEBP")
# An image smaller than one patch shows nothing.
LIMITS: Final = ImageLimits(max_bytes=32 * 2**20, max_pixels=64_000_000, min_side=PATCH)


def decode_tensor(data: bytes, *, wanted_side: int = 0) -> Tensor:
    """Decode an image to uint8 RGB [3, H, W], as `model.image_codec.decode_image` does.

    Args:
        data: The file's content.
        wanted_side: A JPEG whose sides are at least twice as long is decoded at a half, a quarter
            or an eighth of its size, which is faster; 0 decodes at full size.

    Raises:
        BadSample: Not a supported image, broken, or outside the limits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damage in files that it still reads
            pixels_HW3 = decode_image(
                data,
                LIMITS,
                formats=FORMATS,
                reduce_to=(lambda _: (wanted_side, wanted_side)) if wanted_side else None,
            )
    except ImageError as error:
        raise BadSample(str(error)) from error
    # A copy: torch wants writable memory, and Pillow's is read-only.
    return torch.from_numpy(np.array(pixels_HW3)).permute(2, 0, 1)
