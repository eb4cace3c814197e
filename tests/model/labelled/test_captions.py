"""Captions beside an image; formats and reasons are tested where datasets read them."""

import json

import pytest

from model.labelled.captions import read_captions


@pytest.mark.timeout(30)
def test_many_captions_of_one_image_are_read_once_each() -> None:
    # Looking through all captions for each of them takes minutes.
    lines = [f"caption {number}" for number in range(60_000)]
    given = {"captions": {"alt#2": "a named caption"}}
    files = {".txt": "\n".join([*lines, *lines]).encode(), ".json": json.dumps(given).encode()}
    found = read_captions(files)
    assert list(found.by_source.values()) == ["a named caption", *lines]
    assert list(found.by_source)[:3] == ["alt#2", "alt", "alt#3"]
    assert found.left_out == ()
