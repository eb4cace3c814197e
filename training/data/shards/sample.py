"""One image with its captions, and how a shard keeps it: an image file and a JSON record.

Files of one sample share their name up to the first dot of the last part of the path, as in every
WebDataset. It knows neither tar files nor decoders.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ALT = "alt"


class BadSample(ValueError):
    """A sample that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image and what is known of it.

    Attributes:
        key: Names it in its data set; without a dot in its last part.
        image: The encoded image, as it was found.
        suffix: Of its file, one of `IMAGE_SUFFIXES`.
        captions: By source: alt, paligemma, gemini, ...
        names: What it shows, in plain names, where that is known exactly.
        fields: Whatever else is kept, such as url and license.
    """

    key: str
    image: bytes
    suffix: str
    captions: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    def members(self) -> dict[str, bytes]:
        """The sample's files by name: the image, then its record."""
        record = {**self.fields, "captions": dict(self.captions), "names": list(self.names)}
        text = json.dumps(record, ensure_ascii=False, sort_keys=True)
        return {f"{self.key}{self.suffix}": self.image, f"{self.key}.json": text.encode()}


def split_name(name: str) -> tuple[str, str]:
    """Split a file's name into a sample's key and the suffix, in lower case, with its dot."""
    path = PurePosixPath(name)
    stem, dot, suffix = path.name.partition(".")
    key = str(path.with_name(stem)) if stem else name
    return key, (dot + suffix).lower()


def sample_from_members(members: Mapping[str, bytes]) -> Sample:
    """Read a sample from its files by name.

    Ours and those of others: a record's "captions" are by source; a "caption", and the text of a
    .txt file, count as alt text.

    Raises:
        BadSample: No image among them, or a record or text that cannot be read.
    """
    by_suffix = {split_name(name)[1]: (name, content) for name, content in members.items()}
    suffix = next((s for s in IMAGE_SUFFIXES if s in by_suffix), None)
    if suffix is None:
        raise BadSample(f"no image among {sorted(members)}; {IMAGE_SUFFIXES} are read")
    name, image = by_suffix[suffix]
    record = _read_record(by_suffix[".json"][1]) if ".json" in by_suffix else {}
    text = by_suffix[".txt"][1] if ".txt" in by_suffix else b""
    captions = _read_captions(record, text)
    names = record.pop("names", None) or []
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise BadSample("the record's names are no list of texts")
    return Sample(
        key=split_name(name)[0],
        image=image,
        suffix=suffix,
        captions=captions,
        names=tuple(names),
        fields=record,
    )


def _read_record(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError as error:
        raise BadSample(f"the record is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadSample("the record is no JSON object")
    return record


def _read_captions(record: dict[str, Any], text: bytes) -> dict[str, str]:
    """Take the captions out of a record; empty ones are none."""
    captions = record.pop("captions", None) or {}
    if not isinstance(captions, dict):
        raise BadSample("the record's captions are no object of texts by source")
    try:
        alternatives = [record.get("caption"), text.decode("utf-8-sig")]
    except UnicodeDecodeError as error:
        raise BadSample(f"the .txt caption is no UTF-8: {error}") from error
    for alt in alternatives:
        if ALT not in captions and isinstance(alt, str):
            captions[ALT] = alt
    found = {source: value for source, value in captions.items() if value is not None}
    if not all(isinstance(value, str) for value in found.values()):
        raise BadSample("the record's captions are no object of texts by source")
    return {source: value.strip() for source, value in found.items() if value.strip()}
