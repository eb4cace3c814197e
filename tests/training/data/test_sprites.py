"""The sprite bank: built from art, kept in a file, asked by concept."""

from pathlib import Path

import numpy as np
import pytest

from training.data import sprites as sprites_module
from training.data.concepts import Concept, all_concepts
from training.data.sprites import (
    SPRITE_PIXELS,
    ArtFolders,
    SpriteBank,
    build_bank,
    load_bank,
)


@pytest.fixture
def folders(npm: Path, tmp_path: Path) -> ArtFolders:
    """The miniature packages; no clip art, no furniture, no stamps."""
    return ArtFolders(npm=npm, clip_art=tmp_path, furniture=tmp_path, stamps=tmp_path)


def test_a_bank_has_every_drawing_of_the_styles_asked_for(
    folders: ArtFolders, few_concepts: tuple[Concept, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sprites_module, "all_concepts", lambda: few_concepts)
    bank = build_bank(folders, ("noto", "clipart", "furniture", "stamps", "fxemoji"))
    assert bank.rgba_MSS4.shape == (5, SPRITE_PIXELS, SPRITE_PIXELS, 4)
    assert bank.concept_M.tolist() == [0, 0, 1, 0, 1]
    assert bank.style_M.tolist() == [0, 0, 0, 4, 4]
    assert bank.styles == ("noto", "clipart", "furniture", "stamps", "fxemoji")


def test_sprites_are_found_by_concept_and_style(sprite_bank: SpriteBank) -> None:
    found = sprite_bank.by_concept(["noto", "fluent-3d"])
    assert set(found) == set(sprite_bank.concept_M)
    for concept, rows in found.items():
        assert len(rows) == 2
        assert set(sprite_bank.concept_M[rows]) == {concept}
        styles = {sprite_bank.styles[style] for style in sprite_bank.style_M[rows]}
        assert styles == {"noto", "fluent-3d"}
    assert sprite_bank.by_concept(["clipart"]) == {}


def test_a_bank_is_read_as_it_was_saved_and_not_for_another_vocabulary(
    sprite_bank: SpriteBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sprites.npz"
    sprite_bank.save(path)
    loaded = load_bank(path)
    assert loaded.styles == sprite_bank.styles
    for field in ("rgba_MSS4", "concept_M", "style_M"):
        assert np.array_equal(getattr(loaded, field), getattr(sprite_bank, field))
    monkeypatch.setattr(sprites_module, "all_concepts", lambda: all_concepts()[1:])
    with pytest.raises(ValueError, match="delete it and run `python -m training data` again"):
        load_bank(path)
