"""Reading drawings from the art packages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.data.art import (
    clip_art_drawings,
    emoji_by_name,
    emoji_drawings,
    furniture_drawings,
    icon_drawings,
    square_sprite,
    stamp_drawings,
)
from training.data.concepts import Concept

Concepts = tuple[Concept, ...]
Write = Callable[..., None]


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
    npm: Path, few_concepts: Concepts, read: Callable[..., Any], style: str, names: list[str]
) -> None:
    drawings = list(read(npm, style, few_concepts))
    assert [name for name, _ in drawings] == names
    assert {drawing.mode for _, drawing in drawings} == {"RGBA"}
    if style == "noto":
        dog = drawings[0][1]
        assert dog.getpixel((0, 0)) == (0, 0, 0, 0)
        assert dog.getpixel((dog.width // 2, dog.height // 2)) == (255, 0, 0, 255)


def test_emoji_match_spoken_names_with_and_without_their_selector(npm: Path) -> None:
    assert emoji_by_name(npm) == {
        "dog face": "1f436", "dog": "1f415", "star": "2b50", "wolf": "1f43a"
    }  # fmt: skip


def test_a_drawing_is_cropped_and_centred_in_a_square() -> None:
    drawing = Image.new("RGBA", (100, 60))
    ImageDraw.Draw(drawing).rectangle((30, 10, 69, 29), fill=(200, 0, 0, 255))
    sprite = square_sprite(drawing, 20)
    assert sprite is not None
    assert (sprite.shape, sprite.dtype.name) == ((20, 20, 4), "uint8")
    # 40 x 20 pixels become the middle half of the square, full width.
    solid = sprite[..., 3] > 127
    assert solid[5:15].all()
    assert not solid[:4].any()
    assert not solid[16:].any()
    assert (sprite[8:12, 8:12, 0] == 200).all()


def test_full_cards_hairlines_and_empty_drawings_are_left_out() -> None:
    assert square_sprite(Image.new("RGBA", (30, 30), (1, 2, 3, 255)), 10) is None
    assert square_sprite(Image.new("RGBA", (30, 30)), 10) is None
    hairline = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(hairline).line((0, 0, 99, 99), fill=(9, 9, 9, 255))
    assert square_sprite(hairline, 10) is None


@pytest.mark.parametrize(
    ("title", "keywords", "found"),
    [
        ("Running Dog", (), "dog"),
        ("A dog with a bone and a hat", ("dog",), "dog"),
        ("A dog with a bone and a hat", (), None),
        ("dog house", (), None),
        ("dog and star", ("dog",), "dog"),
        ("dog and star", ("dog", "star"), None),
        ("dog icon", ("dog",), None),
        ("star", ("sign",), None),
        ("hotdog", (), None),
        ("grey wolf", ("wolf",), None),
        ("", ("dog",), None),
    ],
)
def test_clip_art_is_named_by_short_titles_and_keywords(
    tmp_path: Path,
    few_concepts: Concepts,
    write_clip_art: Write,
    title: str,
    keywords: tuple[str, ...],
    found: str | None,
) -> None:
    write_clip_art(tmp_path / "animals/a.svg", title, keywords)
    names = [name for name, _ in clip_art_drawings(tmp_path, few_concepts)]
    assert names == ([] if found is None else [found])


@pytest.mark.parametrize(
    "attributes",
    [
        'viewBox="0 0 100 100" width="20" height="20"',
        'width="100" height="100"',
        'width="26.4583mm" height="26.4583mm"',
    ],
)
def test_old_files_are_scaled_and_not_cropped(
    tmp_path: Path, few_concepts: Concepts, write_clip_art: Write, attributes: str
) -> None:
    write_clip_art(tmp_path / "animals/a.svg", "dog", attributes=attributes)
    (tmp_path / "animals/broken.svg").write_text("<svg><dc:title>star</dc:title><circle")
    ((name, drawing),) = clip_art_drawings(tmp_path, few_concepts)  # the broken one is left out
    assert name == "dog"
    solid = np.asarray(drawing.getchannel("A")) > 127
    for axis in (0, 1):
        (reached,) = np.nonzero(solid.any(axis))
        edges = reached[[0, -1]] / len(solid)
        assert edges.tolist() == pytest.approx([0.1, 0.9], abs=0.015)


CATALOGUE = """id=test
name#1=Garden chair
icon#1=/icons/a.png
name#2=Imac
icon#2=/icons/a.png \n\
name#3=Chair with lamp stand
icon#3=/icons/a.png
name#4=Table
"""


def test_furniture_is_named_by_the_last_word(tmp_path: Path, write_catalogue: Write) -> None:
    write_catalogue(tmp_path, CATALOGUE)
    drawings = list(furniture_drawings(tmp_path))
    assert [name for name, _ in drawings] == ["chair", "computer"]
    assert all(drawing.mode == "RGBA" for _, drawing in drawings)


def test_stamps_count_where_the_caption_is_the_name(
    tmp_path: Path, few_concepts: Concepts, png: bytes
) -> None:
    captions = {
        "a": "A dog.\nnl.utf8=Een hond.",
        "b": "The star",
        "c": "A dog with a bone.",
        "d": "Dog",
        "d_mirror": "Dog",
        "e": "",
        "f": "A wolf.",
    }
    for name, text in captions.items():
        (tmp_path / f"{name}.png").write_bytes(png)
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "z.png").write_bytes(png)
    names = [name for name, _ in stamp_drawings(tmp_path, few_concepts)]
    # The wolf is kept from training, and stamps are never used in training.
    assert names == ["dog", "star", "dog", "wolf"]
