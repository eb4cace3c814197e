"""The vocabulary: which drawings share a name, which names are everyday, which stay unseen.

A concept is one English name. `concepts.csv` has a row for each: its drawings are emoji, listed by
their CLDR short names, so that a dog's face, a whole dog and a poodle are one concept and never
compete with one another in a score. `furniture` has the last words of its titles in catalogues of
furniture. `common` marks the 50 everyday words: half of all objects in a training scene are one of
these, as real captions are long-tailed too, and the main score is over exactly them. `no article`
marks plurals and what is not counted.

Not in the table are symbols with no visible object (clock faces, arrows), scenes that fill a whole
card (a sunrise, a cityscape), and things told apart only by text on them.
"""

import csv
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_UNSEEN_SHARE = 0.2
_ROWS = list(csv.DictReader((files(__package__) / "concepts.csv").read_text("utf-8").splitlines()))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split("|") if word)


# What the furniture catalogues call a concept, and its name.
FURNITURE_NAMES = {word: row["name"] for row in _ROWS for word in _listed(row["furniture"])}
NO_ARTICLE = frozenset(row["name"] for row in _ROWS if row["no article"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """One English name and the drawings that show it.

    Attributes:
        name: Its name in captions and prompts.
        drawings: CLDR short names of the emoji that show it; none where only furniture renders do.
        is_common: Whether it is one of the 50 everyday words.
        is_unseen: Whether no training scene may show or name it.
    """

    name: str
    drawings: tuple[str, ...]
    is_common: bool
    is_unseen: bool


def _is_unseen(row: dict[str, str]) -> bool:
    """Choose a fifth of the rarer drawn names by hash, so that adding a name moves no other."""
    digest = hashlib.sha256(f"unseen:{row['name']}".encode()).digest()
    return not row["common"] and not row["furniture"] and digest[0] < 256 * _UNSEEN_SHARE


@cache
def all_concepts() -> tuple[Concept, ...]:
    """List every concept, sorted by name (the order is part of the data's determinism)."""
    return tuple(
        Concept(
            name=row["name"],
            drawings=_listed(row["drawings"]),
            is_common=bool(row["common"]),
            is_unseen=_is_unseen(row),
        )
        for row in sorted(_ROWS, key=lambda row: row["name"])
    )
