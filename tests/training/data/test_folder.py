"""The data folder: what training may see, what evaluation sees, and what to do without data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.art import ART_SETS
from training.data.concepts import all_concepts
from training.data.folder import (
    BANK_STYLES,
    EMOJI_TRAIN_STYLES,
    TRAIN_STYLES,
    DataFolder,
    common_names,
    seen_names,
)
from training.data.scenes import SceneConfig, Split, compose_scene
from training.data.sprites import SpriteBank, save_bank

FORBIDDEN = ("fluent-3d", "openmoji", "stamps")
SPLITS: tuple[Split, ...] = ("train", "val")


def test_the_unseen_styles_and_viral_licences_are_no_training_styles() -> None:
    assert not set(TRAIN_STYLES) & set(FORBIDDEN)
    for art in ART_SETS:
        if art.licence.startswith("GPL") or "SA" in art.licence or "fluent" in art.package:
            assert not art.trainable, art


def test_gpl_art_is_in_no_bank() -> None:
    assert "stamps" not in BANK_STYLES
    assert set(EMOJI_TRAIN_STYLES) <= set(TRAIN_STYLES) <= set(BANK_STYLES)


@pytest.mark.parametrize("style", FORBIDDEN)
def test_training_on_held_out_art_is_refused(data_folder: DataFolder, style: str) -> None:
    with pytest.raises(ValueError, match="training may only use"):
        data_folder.source("train", styles=("noto", style), names=seen_names())


def test_training_on_unseen_concepts_is_refused(data_folder: DataFolder) -> None:
    with pytest.raises(ValueError, match=r"training may not see \['tiger'\]"):
        data_folder.source("train", styles=("noto",), names=seen_names() | {"tiger"})


def test_evaluation_may_use_everything(data_folder: DataFolder) -> None:
    source = data_folder.source("test", styles=("fluent-3d",), names=common_names())
    scene = compose_scene(source, 0, SceneConfig(size=28))
    assert set(scene.captions.names) <= common_names()


def test_training_photos_are_for_training(data_folder: DataFolder) -> None:
    train, val = (
        {
            photo.phrase
            for photo in data_folder.source(split, styles=("noto",), names=seen_names()).photos
        }
        for split in SPLITS
    )
    assert train
    assert val
    assert not train & val


def test_keywords_name_nothing_unseen(data_folder: DataFolder) -> None:
    unseen = {concept.name for concept in all_concepts() if concept.is_unseen}
    keywords = data_folder.keywords()
    assert set(keywords) == {concept.name for concept in all_concepts()}
    assert keywords["dog"] == ("dog", "kind of dog")
    assert not unseen & {word for words in keywords.values() for word in words}


def test_the_names_split_the_vocabulary() -> None:
    assert common_names() < seen_names()
    assert len(common_names()) == 50


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="python -m training data --folder"):
        DataFolder(path=tmp_path).bank()


def test_a_bank_is_kept_in_memory_once_until_its_file_changes(
    sprite_bank: SpriteBank, tmp_path: Path
) -> None:
    save_bank(sprite_bank, tmp_path / "sprites.npz")
    bank = DataFolder(path=tmp_path).bank()
    assert DataFolder(path=tmp_path).bank() is bank
    save_bank(replace(sprite_bank, rgba_MSS4=sprite_bank.rgba_MSS4 // 2), tmp_path / "sprites.npz")
    assert DataFolder(path=tmp_path).bank().rgba_MSS4.max() == 127


def test_without_stamps_there_is_no_stamp_source(data_folder: DataFolder) -> None:
    assert data_folder.stamp_source() is None


def test_stamps_are_read_in_place(data_folder: DataFolder, tmp_path: Path) -> None:
    data = DataFolder(path=tmp_path)
    data.art.stamps.mkdir(parents=True)
    data.photos.parent.mkdir(parents=True, exist_ok=True)
    data.photos.symlink_to(data_folder.photos)
    image = np.zeros((20, 20, 4), np.uint8)
    image[4:16, 4:16] = (200, 90, 30, 255)
    for name, caption in (("a", "A dog."), ("b", "An airplane"), ("c", "Some old thing")):
        Image.fromarray(image).save(data.art.stamps / f"{name}.png")
        (data.art.stamps / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")
    source = data.stamp_source()
    assert source is not None
    assert source.names == {"dog", "airplane"}
    assert source.split == "test"
