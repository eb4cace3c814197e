"""Art packages in miniature, laid out as the real ones are, and a comparison of batches."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from training.data.batch import Batch, TextBatch
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


@pytest.fixture(scope="session")
def png() -> bytes:
    """A small opaque rectangle on a transparent ground."""
    icon = Image.new("RGBA", (16, 16))
    icon.paste((1, 2, 3, 255), (2, 2, 12, 9))
    stream = io.BytesIO()
    icon.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def write_clip_art() -> Callable[..., None]:
    """Write an SVG file of 100 units with a disc, a title and keywords."""

    def write(
        path: Path,
        title: str,
        keywords: tuple[str, ...] = (),
        *,
        attributes: str = 'viewBox="0 0 100 100"',
    ) -> None:
        listed = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" '
            f'xmlns:rdf="urn:rdf" xmlns:dc="urn:dc" {attributes}>'
            f"<metadata><dc:title>{title}</dc:title>{listed}</metadata>"
            '<circle cx="50" cy="50" r="40" fill="blue"/></svg>',
            encoding="utf-8",
        )

    return write


@pytest.fixture(scope="session")
def write_catalogue(png: bytes) -> Callable[[Path, str], None]:
    """Write a catalogue of furniture, in which every model has the icon /icons/a.png."""

    def write(folder: Path, properties: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "a.sh3f", "w") as catalogue:
            catalogue.writestr("PluginFurnitureCatalog.properties", properties)
            catalogue.writestr("icons/a.png", png)

    return write


@pytest.fixture(scope="session")
def is_same() -> Callable[[object, object], bool]:
    """Compare two batches, tensor by tensor; an optional part is None in both or in neither."""

    def compare(first: object, second: object) -> bool:
        if first is None or second is None:
            return first is second
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
            return torch.equal(first, second)
        assert isinstance(first, Batch | TextBatch)
        return all(compare(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))

    return compare
