"""Backgrounds: the right size and range, a phrase that fits, photos of their own split."""

import re

import numpy as np

from training.data.backgrounds import COLOURS, Photo, draw_background

PHOTO = Photo(pixels_HW3=np.full((50, 80, 3), 77, np.uint8), phrase="a gray wall")
COLOUR = "|".join(COLOURS)
PHRASE = re.compile(
    rf"on a plain ({COLOUR}) background"
    rf"|on a background fading from ({COLOUR}) to ({COLOUR})"
    rf"|on a mottled ({COLOUR}) and ({COLOUR}) background"
    rf"|on (an orange|a (?!orange)({COLOUR})) and ({COLOUR}) (striped|checkered) background"
)


def test_patterns_come_with_a_phrase_that_names_their_colours() -> None:
    kinds = set()
    for seed in range(120):
        pixels, phrase = draw_background(np.random.default_rng(seed), 28, ())
        assert (pixels.shape, pixels.dtype.name) == ((28, 28, 3), "float32")
        assert pixels.min() >= 0
        assert pixels.max() <= 255
        assert PHRASE.fullmatch(phrase), phrase
        kinds |= {"plain", "fading", "mottled", "striped", "checkered"} & set(phrase.split())
    assert len(kinds) == 5


def test_textured_backgrounds_are_never_plain() -> None:
    drawn = [
        draw_background(np.random.default_rng(seed), 28, (), is_textured=True)[1]
        for seed in range(60)
    ]
    assert all(set(phrase.split()) & {"mottled", "striped", "checkered"} for phrase in drawn)


def test_a_plain_background_has_about_the_colour_it_is_called() -> None:
    for seed in range(200):
        pixels, phrase = draw_background(np.random.default_rng(seed), 28, ())
        if phrase.startswith("on a plain"):
            colour = phrase.removeprefix("on a plain ").removesuffix(" background")
            assert np.ptp(pixels.reshape(-1, 3), axis=0).max() == 0
            assert np.abs(pixels[0, 0] - COLOURS[colour]).max() < 60


def test_half_are_photos_where_there_are_some() -> None:
    drawn = [draw_background(np.random.default_rng(seed), 28, (PHOTO,)) for seed in range(200)]
    photos = [pixels for pixels, phrase in drawn if phrase == "over a photo of a gray wall"]
    assert 70 < len(photos) < 130
    assert all(np.array_equal(pixels, np.full((28, 28, 3), 77)) for pixels in photos)
