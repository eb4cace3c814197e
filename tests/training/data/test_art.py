"""Reading art packages: which drawing is which concept, and cutting a drawing to a square."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.data.art import (
    ART_SETS,
    clean_title,
    emoji_by_name,
    emoji_drawings,
    icon_drawings,
    keywords_by_name,
    render_svg,
    square_sprite,
)
from training.data.concepts import Concept
from training.data.folder import DEBIAN_PACKAGES, NPM_PACKAGES, STAMPS_PACKAGE


def test_every_set_comes_from_a_package_that_is_fetched() -> None:
    fetched = {*NPM_PACKAGES, *DEBIAN_PACKAGES, STAMPS_PACKAGE}
    assert {art.package for art in ART_SETS} <= fetched
    assert len({art.name for art in ART_SETS}) == len(ART_SETS)


def test_emoji_are_found_by_their_spoken_names(npm: Path) -> None:
    assert emoji_by_name(npm) == {
        "dog face": "1f436", "dog": "1f415", "star": "2b50", "wolf": "1f43a"
    }  # fmt: skip


def test_keywords_are_those_of_spoken_names(npm: Path) -> None:
    assert keywords_by_name(npm)["star"] == ("star", "star image")
    assert set(keywords_by_name(npm)) == {"dog face", "dog", "star", "wolf"}


@pytest.mark.parametrize("style", ["noto", "emojione"])
def test_a_set_gives_each_drawing_that_it_has(
    npm: Path, style: str, few_concepts: tuple[Concept, ...]
) -> None:
    # "dog" is an alias; "emojione" has no table of its own; no set has the wolf.
    drawings = list(emoji_drawings(npm, style, few_concepts))
    assert [name for name, _ in drawings] == ["dog", "dog", "star"]
    for _, drawing in drawings:
        assert drawing.mode == "RGBA"
        assert drawing.getpixel((0, 0)) == (0, 0, 0, 0)
    centre = drawings[0][1].getpixel((drawings[0][1].width // 2, drawings[0][1].height // 2))
    assert centre == (255, 0, 0, 255)


def test_images_are_found_with_and_without_their_selector(
    npm: Path, few_concepts: tuple[Concept, ...]
) -> None:
    drawings = list(emoji_drawings(npm, "fluent-3d", few_concepts))
    assert [name for name, _ in drawings] == ["dog", "star"]


def test_icons_are_known_by_their_slugs_and_never_unseen(
    npm: Path, few_concepts: tuple[Concept, ...]
) -> None:
    drawings = list(icon_drawings(npm, "fxemoji", few_concepts))
    assert [name for name, _ in drawings] == ["dog", "star"]


def test_what_is_no_svg_is_refused() -> None:
    with pytest.raises(ValueError, match="root node"):
        render_svg("<nothing")


@pytest.mark.parametrize(
    ("text", "words"), [("Dog_Face 2", "dog face"), ("  A-b ", "a b"), ("123", "")]
)
def test_titles_are_cleaned(text: str, words: str) -> None:
    assert clean_title(text) == words


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


def test_cards_hairlines_and_nothing_are_left_out() -> None:
    assert square_sprite(Image.new("RGBA", (30, 30), (1, 2, 3, 255)), 10) is None
    assert square_sprite(Image.new("RGBA", (30, 30)), 10) is None
    hairline = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(hairline).line((0, 0, 99, 99), fill=(9, 9, 9, 255))
    assert square_sprite(hairline, 10) is None
    disc = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(disc).ellipse((10, 10, 90, 90), fill=(9, 9, 9, 255))
    sprite = square_sprite(disc, 32)
    assert sprite is not None
    assert np.count_nonzero(sprite[..., 3] > 127) == pytest.approx(np.pi * 16**2, rel=0.05)
