"""The captions beside an image: one format for evaluation and training."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Final

ALT: Final = "alt"
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCaptions:
    """What the files of one image hold.

    Attributes:
        by_source: Captions without empty ones. Those without a source are alt, alt#2, alt#3, ...
        fields: The other fields of the .json file.
        left_out: A reason for each file or caption that cannot be read.
    """

    by_source: Mapping[str, str]
    fields: dict[str, Any]
    left_out: tuple[str, ...]


def read_captions(files: Mapping[str, bytes]) -> FoundCaptions:
    """Read the captions of an image; what cannot be read is left out.

    Args:
        files: Contents by suffix. Each line of .txt is a caption. In .json, `captions` is a list of
            texts, one text, or texts by source, and `caption` is one text.
    """
    lines, record, left_out = list[str](), dict[str, Any](), list[str]()
    try:
        lines = files.get(".txt", b"").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        left_out.append("the .txt file is no UTF-8")
    try:
        content = json.loads(files.get(".json", b"{}"))
        record = content if isinstance(content, dict) else {}
        if record is not content:
            left_out.append("the .json file is no JSON object")
    except (ValueError, RecursionError):
        left_out.append("the .json file is no JSON")
    given = record.pop("captions", None) or []
    named = given if isinstance(given, dict) else {}
    listed = [] if named else given if isinstance(given, list) else [given]
    found = [*named.items(), *((ALT, text) for text in (*listed, record.get("caption"), *lines))]
    captions = dict[str, str]()
    numbered = (f"{ALT}#{number}" for number in count(2))
    free_names = (name for name in chain([ALT], numbered) if name not in captions)
    known = set[str]()
    for place, (source, text) in enumerate(found):
        if text is not None and not isinstance(text, str):
            left_out.append("a caption is no text")
        elif text and (whole := text.strip()):
            if place < len(named):
                captions[source] = whole
            elif whole not in known:
                captions[next(free_names)] = whole
            known.add(whole)
    return FoundCaptions(by_source=captions, fields=record, left_out=tuple(left_out))


def source_of(name: str) -> str:
    """The source of a caption: that of alt#2 is alt."""
    return name.partition("#")[0]


def tally(reasons: Mapping[str, int]) -> str:
    """The most frequent reasons with their counts."""
    return ", ".join(f"{reason} ({n})" for reason, n in Counter(reasons).most_common(_SHOWN))
