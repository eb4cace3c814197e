"""Captions are one plain line of bounded length."""

import pytest

from training.captioning.job import CleaningConfig, clean_caption


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("  a cat \n", "a cat"),
        ("a cat\n\n on a\tmat ", "a cat on a mat"),
        ('"a cat"', "a cat"),
        ("\u201ca cat\u201d", "a cat"),
        ("'a cat'", "a cat"),
        ('"a" and "b"', '"a" and "b"'),
        ("the cat's mat", "the cat's mat"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\u200b cat\x00\ufeff", "a cat"),
        ("a \x00 cat", "a cat"),
        ("a\u00a0cat", "a cat"),
        ('""', ""),
        ('"', '"'),
        (" \n ", ""),
    ],
)
def test_it_cleans(said: str, caption: str) -> None:
    assert clean_caption(said, CleaningConfig()) == caption


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("one two", "one two"),
        ("one two3", "one"),
        ("one twoo three", "one"),
        ("onetwothree", "onetwot"),
    ],
)
def test_what_is_too_long_is_cut_at_a_word(said: str, caption: str) -> None:
    assert clean_caption(said, CleaningConfig(max_characters=7)) == caption


def test_cleaning_twice_changes_nothing_more() -> None:
    config = CleaningConfig(max_characters=12)
    once = clean_caption(' "A  cat, \n and a dog" ', config)
    assert clean_caption(once, config) == once


def test_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="max_characters"):
        CleaningConfig(max_characters=0)
