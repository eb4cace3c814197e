"""Cleans what a model said into a caption: one line, no wrapping quotes, no longer than a cap."""

import re
import unicodedata
from dataclasses import dataclass

_SPACES = re.compile(r"\s+")
_QUOTES = (('"', '"'), ("\u201c", "\u201d"), ("'", "'"), ("\u2018", "\u2019"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningConfig:
    """How captions are cleaned.

    Attributes:
        max_characters: Where a caption is cut, back to the end of a word. TIPSv2 does not publish
            its captions' lengths. Its text tower reads 64 tokens, about 300 characters of English,
            so 1000 keeps three times what can be read and stops a model that runs on.
    """

    max_characters: int = 1000

    def __post_init__(self) -> None:
        """Check the cap."""
        if self.max_characters < 1:
            raise ValueError("max_characters must be at least 1")


def clean_caption(text: str, config: CleaningConfig) -> str:
    """Clean a caption; may return "" where nothing is left.

    In this order: characters are composed (NFC), control and other invisible characters go, white
    space of any kind becomes single spaces, one pair of quotes around the whole goes, and what is
    longer than the cap is cut at a word's end.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    text = _SPACES.sub(" ", text).strip()
    for left, right in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text[0] == left and text[-1] == right and left not in inner:
            text = inner.strip()
            break
    if len(text) <= config.max_characters:
        return text
    cut = text[: config.max_characters + 1]
    return cut.rsplit(" ", 1)[0].rstrip() if " " in cut else cut[: config.max_characters]
