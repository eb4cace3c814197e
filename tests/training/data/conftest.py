"""Art packages in miniature, laid out as the real ones are."""

import json
from pathlib import Path

import pytest
from PIL import Image

from training.data.concepts import Concept

CLDR_NAMES = {"\U0001f436": "dog face", "\U0001f415": "dog", "\u2b50": "star"}
EMOJI_NAMES = {"\U0001f436": "dog face", "\U0001f415": "dog", "\u2b50\ufe0f": "star"}
CODES = {"1f436": "dog-face", "1f415": "dog", "2b50-fe0f": "star"}


def disc(colour: str, *, radius: int = 7) -> str:
    """The body of an icon of 16 units."""
    return f'<circle cx="8" cy="8" r="{radius}" fill="{colour}"/>'


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def few_concepts() -> tuple[Concept, ...]:
    """A dog in two drawings, a star, and a wolf that is kept unseen."""
    return (
        Concept(name="dog", drawings=("dog face", "dog"), is_common=True, is_unseen=False),
        Concept(name="star", drawings=("star",), is_common=True, is_unseen=False),
        Concept(name="wolf", drawings=("wolf",), is_common=False, is_unseen=True),
    )


@pytest.fixture(scope="session")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node_modules folder: names, an emoji set with a table, one without, 3D images, icons."""
    folder = tmp_path_factory.mktemp("npm") / "node_modules"
    words = {
        emoji: {"default": [name, f"{name} image"], "tts": [name]}
        for emoji, name in {**CLDR_NAMES, "\U0001f43a": "wolf"}.items()
    }
    words["\u20ac"] = {"default": ["money"]}
    _write(
        folder / "cldr-annotations-full/annotations/en/annotations.json",
        {"annotations": {"annotations": words}},
    )
    emojis = {emoji: {"name": name} for emoji, name in EMOJI_NAMES.items()}
    emojis["\U0001f43a"] = {"name": "wolf"}
    _write(folder / "unicode-emoji-json/data-by-emoji.json", emojis)
    sets = folder / "@iconify-json"
    icons = {"dog-face": {"body": disc("red")}, "star": {"body": disc("gold"), "width": 16}}
    aliases = {"dog": {"parent": "dog-face"}}
    for style, codes in (("noto", CODES), ("twemoji", CODES), ("emojione", {})):
        _write(sets / style / "icons.json", {"icons": icons, "aliases": aliases, "height": 16})
        _write(sets / style / "chars.json", codes)
    slugs = ("dog-face-2", "star-1", "wolf", "gear-wheel")
    named = {slug: {"body": disc("teal")} for slug in slugs}
    _write(sets / "fxemoji/icons.json", {"icons": named})
    images = folder / "@lobehub/fluent-emoji-3d/assets"
    images.mkdir(parents=True)
    for key in ("1f415", "2b50-fe0f"):
        Image.new("RGBA", (24, 24), (10, 200, 30, 255)).save(images / f"{key}.webp")
    return folder
