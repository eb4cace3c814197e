"""Drawings of the art packages, and the banks that are made of them."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.data import sprites
from training.data.art import emoji_drawings, icon_drawings
from training.data.concepts import Concept, all_concepts
from training.data.folder import load_bank
from training.data.sprites import ArtFolders, SpriteBank
from training.data.unnamed import (
    CLOSE_UP,
    ICON_SETS,
    UNNAMED_PIXELS,
    UnnamedBank,
    UnnamedSource,
    build_unnamed,
)

# A dog in two drawings, a star, and a wolf that is kept unseen.
CONCEPTS = tuple(
    Concept(name=name, drawings=drawings, is_common=not is_unseen, is_unseen=is_unseen)
    for name, drawings, is_unseen in (
        ("dog", ("dog face", "dog"), False),
        ("star", ("star",), False),
        ("wolf", ("wolf",), True),
    )
)
EMOJIS = {"\U0001f436": "dog face", "\U0001f415": "dog", "\u2b50": "star", "\U0001f43a": "wolf"}
CODES = {"1f436": "dog-face", "1f415": "dog", "2b50-fe0f": "star"}


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def disc(colour: str) -> dict[str, str]:
    """The body of an icon of 16 units."""
    return {"body": f'<circle cx="8" cy="8" r="7" fill="{colour}"/>'}


def write_clip_art(
    path: Path, title: str, *keywords: str, attributes: str = 'viewBox="0 0 100 100"'
) -> None:
    """An SVG file of 100 units with a disc, a title and keywords."""
    listed = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:rdf="urn:rdf" xmlns:dc="urn:dc"'
    write(
        path,
        f'<?xml version="1.0"?>\n<svg {spaces} {attributes}><metadata><dc:title>{title}</dc:title>'
        f'{listed}</metadata><circle cx="50" cy="50" r="40" fill="blue"/></svg>',
    )


def png() -> bytes:
    """A small opaque rectangle on a transparent ground."""
    icon, stream = Image.new("RGBA", (16, 16)), io.BytesIO()
    icon.paste((1, 2, 3, 255), (2, 2, 12, 9))
    icon.save(stream, "PNG")
    return stream.getvalue()


def write_furniture(folder: Path, properties: str) -> None:
    """A catalogue in which every model has the icon /icons/a.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "a.sh3f", "w") as catalogue:
        catalogue.writestr("PluginFurnitureCatalog.properties", properties)
        catalogue.writestr("icons/a.png", png())


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node_modules folder: names, an emoji set with a table, one without, 3D images, icons."""
    folder = tmp_path_factory.mktemp("npm") / "node_modules"
    words = {emoji: {"default": [name], "tts": [name]} for emoji, name in EMOJIS.items()}
    words["\u20ac"] = {"default": ["money"]}
    annotations = folder / "cldr-annotations-full/annotations/en/annotations.json"
    write(annotations, {"annotations": {"annotations": words}})
    # The star has a variation selector here and in the tables, and none in the annotations.
    emojis = {emoji.replace("\u2b50", "\u2b50\ufe0f"): {"name": n} for emoji, n in EMOJIS.items()}
    write(folder / "unicode-emoji-json/data-by-emoji.json", emojis)
    icons = {"dog-face": disc("red"), "star": {**disc("gold"), "width": 16}}
    drawn = {"icons": icons, "aliases": {"dog": {"parent": "dog-face"}}, "height": 16}
    for style, codes in (("noto", CODES), ("twemoji", CODES), ("emojione", {})):
        write(folder / "@iconify-json" / style / "icons.json", drawn)
        write(folder / "@iconify-json" / style / "chars.json", codes)
    slugs = ("dog-face-2", "star-1", "wolf", "gear-wheel")
    write(
        folder / "@iconify-json/fxemoji/icons.json", {"icons": dict.fromkeys(slugs, disc("teal"))}
    )
    images = folder / "@lobehub/fluent-emoji-3d/assets"
    images.mkdir(parents=True)
    for key in ("1f415", "2b50-fe0f"):
        Image.new("RGBA", (24, 24), (10, 200, 30, 255)).save(images / f"{key}.webp")
    return folder


@pytest.mark.parametrize(
    ("read", "style", "names"),
    [
        # "dog" is an alias; "emojione" has no table of its own; no set has the wolf.
        (emoji_drawings, "noto", ["dog", "dog", "star"]),
        (emoji_drawings, "emojione", ["dog", "dog", "star"]),
        (emoji_drawings, "fluent-3d", ["dog", "star"]),
        (icon_drawings, "fxemoji", ["dog", "star"]),  # which has a wolf: it is unseen
    ],
)
def test_a_set_gives_each_drawing_that_it_has(
    npm: Path, read: Callable[..., Any], style: str, names: list[str]
) -> None:
    drawings = list(read(npm, style, CONCEPTS))
    assert [name for name, _ in drawings] == names
    assert {drawing.mode for _, drawing in drawings} == {"RGBA"}
    if style == "noto":
        dog = drawings[0][1]
        assert dog.getpixel((0, 0)) == (0, 0, 0, 0)
        assert dog.getpixel((dog.width // 2, dog.height // 2)) == (255, 0, 0, 255)


def test_a_bank_is_read_as_it_was_saved_and_not_for_another_vocabulary(
    sprite_bank: SpriteBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sprite_bank.save(tmp_path / "sprites.npz")
    loaded = load_bank(tmp_path / "sprites.npz")
    assert (loaded.styles, loaded.names) == (sprite_bank.styles, sprite_bank.names)
    assert np.array_equal(loaded.rgba_MSS4, sprite_bank.rgba_MSS4)
    found = loaded.by_concept(["noto", "fluent-3d"])
    assert set(found) == set(sprite_bank.concept_M)
    for concept, rows in found.items():
        assert set(sprite_bank.concept_M[rows]) == {concept}
        styles = [sprite_bank.styles[style] for style in sprite_bank.style_M[rows]]
        assert sorted(styles) == ["fluent-3d", "noto"]
    monkeypatch.setattr(sprites, "all_concepts", lambda: all_concepts()[1:])
    with pytest.raises(ValueError, match="delete it and run `python -m training data` again"):
        load_bank(tmp_path / "sprites.npz")


def test_unnamed_drawings_lack_unseen_concepts_and_near_copies(tmp_path: Path) -> None:
    unseen = min(concept.name.lower() for concept in all_concepts() if concept.is_unseen)
    clip_art = tmp_path / "clip"
    slugs = ("happy-face", f"{unseen.replace(' ', '-')}-2", "flag-france", "hand-light-skin-tone")
    for style in ICON_SETS:
        icons = dict.fromkeys(slugs, disc("teal")) if style == "fxemoji" else {}
        drawn = {"icons": icons, "aliases": {"copy": {"parent": "happy-face"}}}
        write(tmp_path / "npm/@iconify-json" / style / "icons.json", drawn)
    write_clip_art(clip_art / "a/one.svg", "An old wheel!")
    write_clip_art(clip_art / "b/one.svg", "An old wheel!")
    write_clip_art(clip_art / "b/two.svg", "nothing", f"{unseen}s")
    write_clip_art(clip_art / "b/three.svg", "")
    write(clip_art / "b/broken.svg", "<svg")
    rows = (f"name#{i}={n}\nicon#{i}=/icons/a.png\n" for i, n in enumerate(("Wood shelf", unseen)))
    write_furniture(tmp_path / "furniture", "".join(rows) + "name#3=no")
    art = ArtFolders(
        npm=tmp_path / "npm",
        clip_art=clip_art,
        furniture=tmp_path / "furniture",
        stamps=tmp_path / "stamps",
    )
    bank = build_unnamed(art)
    assert sorted(bank.titles) == ["", "an old wheel", "happy face", "wood shelf"]
    assert bank.rgba_MSS4.shape == (4, UNNAMED_PIXELS, UNNAMED_PIXELS, 4)
    bank.save(tmp_path / "u.npz")
    assert UnnamedBank.load(tmp_path / "u.npz").titles == bank.titles
    source = UnnamedSource(bank=bank, photos=(), seed=1)
    (pixels, title), (again, same) = source.image(5), source.image(5)
    assert pixels.shape == (CLOSE_UP.size, CLOSE_UP.size, 3)
    assert title == same
    np.testing.assert_array_equal(pixels, again)
    for other in (source.image(6), replace(source, seed=2).image(5)):
        assert not np.array_equal(pixels, other[0])
