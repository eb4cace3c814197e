"""Unnamed drawings: all of the trainable sets but the unseen concepts, without near copies."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.data.concepts import all_concepts
from training.data.sprites import ArtFolders
from training.data.unnamed import (
    CLOSE_UP,
    ICON_SETS,
    UNNAMED_PIXELS,
    UnnamedBank,
    UnnamedSource,
    build_unnamed,
)

DISC = '<circle cx="8" cy="8" r="7" fill="teal"/>'
UNSEEN = min(concept.name.lower() for concept in all_concepts() if concept.is_unseen)
CATALOGUE = (
    f"name#1=Wooden shelf\nicon#1=/icons/a.png\nname#2={UNSEEN}\nicon#2=/icons/a.png\nname#3=no"
)


@pytest.fixture
def art(
    tmp_path: Path, write_clip_art: Callable[..., None], write_catalogue: Callable[..., None]
) -> ArtFolders:
    """One icon set with drawings to take and to leave, two clip-art folders, one catalogue."""
    npm, clip_art, furniture = tmp_path / "npm", tmp_path / "clip", tmp_path / "furniture"
    slugs = ("happy-face", f"{UNSEEN.replace(' ', '-')}-2", "flag-france", "hand-light-skin-tone")
    for style in ICON_SETS:
        icons = {slug: {"body": DISC} for slug in slugs} if style == "fxemoji" else {}
        (npm / "@iconify-json" / style).mkdir(parents=True)
        text = json.dumps({"icons": icons, "aliases": {"copy": {"parent": "happy-face"}}})
        (npm / "@iconify-json" / style / "icons.json").write_text(text, encoding="utf-8")
    write_clip_art(clip_art / "a/one.svg", "An old wheel!")
    write_clip_art(clip_art / "b/one.svg", "An old wheel!")
    write_clip_art(clip_art / "b/two.svg", "nothing", (f"{UNSEEN}s",))
    write_clip_art(clip_art / "b/three.svg", "")
    (clip_art / "b/broken.svg").write_text("<svg", encoding="utf-8")
    write_catalogue(furniture, CATALOGUE)
    return ArtFolders(npm=npm, clip_art=clip_art, furniture=furniture, stamps=tmp_path / "stamps")


def test_unseen_concepts_and_near_copies_are_left_out(art: ArtFolders, tmp_path: Path) -> None:
    bank = build_unnamed(art)
    assert sorted(bank.titles) == ["", "an old wheel", "happy face", "wooden shelf"]
    assert bank.rgba_MSS4.shape == (4, UNNAMED_PIXELS, UNNAMED_PIXELS, 4)
    assert bank.rgba_MSS4.dtype == np.uint8
    for path in art.npm.rglob("icons.json"):
        path.write_text('{"icons": {}}', encoding="utf-8")
    nothing = tmp_path / "nothing"
    with pytest.raises(ValueError, match="no drawing"):
        build_unnamed(replace(art, clip_art=nothing, furniture=nothing))


def test_an_image_depends_on_the_seed_and_its_number_alone(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 4), np.uint8)
    UnnamedBank(rgba_MSS4=rgba, titles=("a", "")).save(tmp_path / "u.npz")
    bank = UnnamedBank.load(tmp_path / "u.npz")
    assert bank.titles == ("a", "")
    np.testing.assert_array_equal(bank.rgba_MSS4, rgba)
    source = UnnamedSource(bank=bank, photos=(), seed=1)
    pixels, title = source.image(5)
    assert pixels.shape == (CLOSE_UP.size, CLOSE_UP.size, 3)
    again, same = UnnamedSource(bank=bank, photos=(), seed=1).image(5)
    np.testing.assert_array_equal(pixels, again)
    assert title == same
    for other in (source.image(6), replace(source, seed=2).image(5)):
        assert not np.array_equal(pixels, other[0])
