"""Captions of scenes, and the choice of captions for each step.

A scene has three captions: its names, its keywords, and a sentence about the whole scene. They
stand for web alt text (short, sometimes incomplete), a synthetic caption and a long detailed one in
TIPSv2's multi-granularity captions (arXiv:2604.12012, section on captions).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import MinLen
from pydantic.dataclasses import dataclass as checked_dataclass

from model.labelled.captions import source_of
from model.text import TEMPLATES
from training.data.concepts import NO_ARTICLE
from training.settings import STRICT

if TYPE_CHECKING:
    import inflect

_NUMBERS = ("", "", "two", "three", "four")
# Exceptions that `inflect` does not know.
_PLURALS = {
    "burrito": "burritos",
    "dango": "dango",
    "moai": "moai",
    "nut and bolt": "nuts and bolts",
}
# Prompts that a plural or a mass noun fits as well.
_ARTICLE_FREE = ("art of the {}.", "a photo of the large {}.", "a photo of the small {}.")
_LARGE, _SMALL = 0.52, 0.34
_STREAM = 7  # separates the choice of captions from other random streams
_HIDDEN = 0.8
Sources = Annotated[tuple[str, ...], MinLen(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedObject:
    """Properties of one object that a caption may mention.

    Attributes:
        name: The concept's name.
        size: Longer side as a share of the image's side.
        x: Centre, 0 left to 1 right.
        y: Centre, 0 top to 1 bottom.
        visible: Share of its pixels that are not covered.
    """

    name: str
    size: float
    x: float
    y: float
    visible: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """Three captions of one scene, short to long, and the plain names of what it shows."""

    names: tuple[str, ...]
    short: str
    keywords: str
    scene: str

    def by_source(self) -> dict[str, str]:
        """The three captions by their source."""
        return {"alt": self.short, "keywords": self.keywords, "scene": self.scene}


@cache
def _engine() -> "inflect.engine":
    # Imported here, because the import takes more than a second and most jobs compose no scene.
    import inflect  # noqa: PLC0415

    return inflect.engine()


@cache
def plural(name: str) -> str:
    """The plural; a plural or a mass noun is returned unchanged."""
    if name in NO_ARTICLE:
        return name
    return _PLURALS.get(name) or str(_engine().plural_noun(name))


@cache
def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    return str(_engine().a(phrase))


def _noun_phrase(name: str, adjective: str, count: int) -> str:
    if name in NO_ARTICLE:
        return f"{adjective} {name}".strip()
    if count > 1:
        return " ".join(part for part in (_NUMBERS[count], adjective, plural(name)) if part)
    return with_article(f"{adjective} {name}".strip())


def _place(x: float, y: float) -> str:
    row = ("top", "", "bottom")[min(2, int(y * 3))]
    column = ("left", "", "right")[min(2, int(x * 3))]
    if not row and not column:
        return "in the center"
    if not row:
        return f"on the {column}"
    return f"at the {row} {column}".strip()


def _join(parts: Sequence[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _grouped(objects: Sequence[PlacedObject]) -> dict[str, list[PlacedObject]]:
    groups: dict[str, list[PlacedObject]] = {}
    for thing in objects:
        groups.setdefault(thing.name, []).append(thing)
    return groups


def _scene_sentence(objects: Sequence[PlacedObject], background: str) -> str:
    parts = []
    for name, group in _grouped(objects).items():
        first = group[0]
        adjective = "large" if first.size > _LARGE else "small" if first.size < _SMALL else ""
        places = _join([_place(thing.x, thing.y) for thing in group])
        hidden = " partly hidden" if first.visible < _HIDDEN and len(group) == 1 else ""
        parts.append(f"{_noun_phrase(name, adjective, len(group))} {places}{hidden}")
    return f"{_join(parts)}, {background}"


def _short_caption(rng: np.random.Generator, objects: Sequence[PlacedObject]) -> str:
    groups = _grouped(objects)
    kept = list(groups)
    if len(kept) > 1 and rng.random() < 0.15:  # alt text is often incomplete
        kept.remove(kept[rng.integers(len(kept))])
    rng.shuffle(kept)
    if len(kept) == 1 and rng.random() < 0.4:
        templates = _ARTICLE_FREE if kept[0] in NO_ARTICLE else TEMPLATES["tcl"]
        return templates[rng.integers(len(templates))].format(kept[0])
    if rng.random() < 0.3:  # bare names, as tags are
        return ", ".join(kept)
    return _join([_noun_phrase(name, "", len(groups[name])) for name in kept])


def write_captions(
    rng: np.random.Generator,
    objects: Sequence[PlacedObject],
    background: str,
    keywords: Mapping[str, Sequence[str]],
) -> Captions:
    """Describe a scene.

    Args:
        rng: Source of every choice (what is left out, in which order).
        objects: The visible objects, at least one.
        background: The background's phrase.
        keywords: CLDR keywords by concept name.

    Returns:
        The captions, in lower case except for proper names.
    """
    words: list[str] = []
    for name in _grouped(objects):
        own = list(keywords.get(name, ())) or [name]
        words += [own[i] for i in rng.permutation(len(own))[:3]]
    return Captions(
        names=tuple(_grouped(objects)),
        short=_short_caption(rng, objects),
        keywords=", ".join(dict.fromkeys(words)),
        scene=_scene_sentence(objects, background),
    )


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CaptionSampling:
    """Which caption sources supervise which CLS token.

    Attributes:
        cls1: Sources for CLS1; TIPSv2 always takes the web alt text.
        cls2: Sources for CLS2, of which one is drawn uniformly each time an image is used; TIPSv2
            draws between a short synthetic caption (PaliGemma) and a long one (Gemini), with
            unpublished probabilities.

    With the same single source for both, this is the ablation without multi-granularity captions.

    Source: TIPSv2, arXiv:2604.12012, the section on multi-granularity captions.
    """

    cls1: Sources = ("alt",)
    cls2: Sources = ("paligemma", "gemini")

    def choose(
        self, captions: Mapping[str, str], rng: np.random.Generator
    ) -> tuple[str, str] | None:
        """Draw an image's captions for CLS1 and CLS2.

        A token without any of its sources takes any other caption of the image; the result is None
        for an image without captions.
        """
        present = {source: text for source, text in captions.items() if text.strip()}
        if not present:
            return None
        first, second = (
            [present[name] for source in wanted for name in present if source_of(name) == source]
            or list(present.values())
            for wanted in (self.cls1, self.cls2)
        )
        return first[rng.integers(len(first))], second[rng.integers(len(second))]

    def choose_at(
        self, captions: Mapping[str, str], *, seed: int, place: int
    ) -> tuple[str, str] | None:
        """Draw as `choose` does; seed and place in the stream determine the choice."""
        return self.choose(captions, np.random.default_rng((seed, place, _STREAM)))


SCENE_CAPTIONS = CaptionSampling(cls1=("alt",), cls2=("keywords", "scene"))
