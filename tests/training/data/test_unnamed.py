"""Unnamed drawings: all of the trainable sets but what stays unseen, and no near copies."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.art import ART_SETS
from training.data.concepts import all_concepts
from training.data.sprites import ArtFolders
from training.data.unnamed import (
    CLOSE_UP,
    ICON_SETS,
    UNNAMED_PIXELS,
    UnnamedBank,
    UnnamedSource,
    build_unnamed,
    load_unnamed,
    save_unnamed,
)

DISC = '<circle cx="8" cy="8" r="7" fill="teal"/>'
UNSEEN = min(concept.name.lower() for concept in all_concepts() if concept.is_unseen)


def write_clip_art(folder: Path, name: str, title: str, keyword: str = "thing") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:dc="urn:dc" xmlns:rdf="urn:rdf" '
        f'viewBox="0 0 16 16"><dc:title>{title}</dc:title><rdf:li>{keyword}</rdf:li>{DISC}</svg>',
        encoding="utf-8",
    )


@pytest.fixture
def art(tmp_path: Path) -> ArtFolders:
    """One icon set with drawings to take and to leave, two clip-art folders, one catalogue."""
    npm, clip_art, furniture = tmp_path / "npm", tmp_path / "clip", tmp_path / "furniture"
    slugs = ("happy-face", f"{UNSEEN.replace(' ', '-')}-2", "flag-france", "hand-light-skin-tone")
    for style in ICON_SETS:
        icons = {slug: {"body": DISC} for slug in slugs} if style == "fxemoji" else {}
        (npm / "@iconify-json" / style).mkdir(parents=True)
        text = json.dumps({"icons": icons, "aliases": {"copy": {"parent": "happy-face"}}})
        (npm / "@iconify-json" / style / "icons.json").write_text(text, encoding="utf-8")
    write_clip_art(clip_art / "a", "one", "An old wheel!")
    write_clip_art(clip_art / "b", "one", "An old wheel!")
    write_clip_art(clip_art / "b", "two", "nothing", keyword=f"{UNSEEN}s")
    write_clip_art(clip_art / "b", "three", "")
    (clip_art / "b/broken.svg").write_text("<svg", encoding="utf-8")
    furniture.mkdir()
    stream = io.BytesIO()
    icon = Image.new("RGBA", (16, 16))
    icon.paste((1, 2, 3, 255), (2, 2, 12, 9))
    icon.save(stream, "PNG")
    with zipfile.ZipFile(furniture / "a.sh3f", "w") as catalogue:
        listed = f"name#1=Wooden shelf\nicon#1=/i.png\nname#2={UNSEEN}\nicon#2=/i.png\nname#3=no"
        catalogue.writestr("PluginFurnitureCatalog.properties", listed)
        catalogue.writestr("i.png", stream.getvalue())
    return ArtFolders(npm=npm, clip_art=clip_art, furniture=furniture, stamps=tmp_path / "stamps")


def test_only_trainable_sets_are_read() -> None:
    trainable = {art.name for art in ART_SETS if art.trainable}
    assert set(ICON_SETS) < trainable


def test_what_stays_unseen_and_near_copies_are_left_out(art: ArtFolders) -> None:
    bank = build_unnamed(art)
    assert sorted(bank.titles) == ["", "an old wheel", "happy face", "wooden shelf"]
    assert bank.rgba_MSS4.shape == (4, UNNAMED_PIXELS, UNNAMED_PIXELS, 4)
    assert bank.rgba_MSS4.dtype == np.uint8


def test_an_empty_folder_is_an_error(art: ArtFolders, tmp_path: Path) -> None:
    for style in ICON_SETS:
        path = art.npm / "@iconify-json" / style / "icons.json"
        path.write_text('{"icons": {}}', encoding="utf-8")
    nothing = tmp_path / "nothing"
    with pytest.raises(ValueError, match="no drawing"):
        build_unnamed(ArtFolders(npm=art.npm, clip_art=nothing, furniture=nothing, stamps=nothing))


def test_a_bank_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rgba = np.arange(2 * 4 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 4)
    save_unnamed(UnnamedBank(rgba_MSS4=rgba, titles=("a", "")), tmp_path / "u.npz")
    bank = load_unnamed(tmp_path / "u.npz")
    assert bank.titles == ("a", "")
    np.testing.assert_array_equal(bank.rgba_MSS4, rgba)
    assert [path.name for path in tmp_path.iterdir()] == ["u.npz"]


def test_a_image_depends_on_seed_and_number_alone(art: ArtFolders) -> None:
    bank = build_unnamed(art)
    source = UnnamedSource(bank=bank, photos=(), seed=1)
    pixels, title = source.image(5)
    assert pixels.shape == (CLOSE_UP.size, CLOSE_UP.size, 3)
    assert title in bank.titles
    again, same = UnnamedSource(bank=bank, photos=(), seed=1).image(5)
    np.testing.assert_array_equal(pixels, again)
    assert title == same
    for other in (source.image(6), UnnamedSource(bank=bank, photos=(), seed=2).image(5)):
        assert not np.array_equal(pixels, other[0])
