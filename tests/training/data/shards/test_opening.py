"""A folder is opened as what it is."""

from pathlib import Path

from training.data.crops import CropConfig
from training.data.shards.manifest import ShardStore
from training.data.shards.opening import describe_folder, open_store
from training.data.shards.picture_folder import PictureFolder
from training.data.shards.writing import ShardPlan, build_shards


def test_shards_and_plain_pictures_are_told_apart(tmp_path: Path, picture_folder: Path) -> None:
    plain = open_store(picture_folder)
    assert isinstance(plain, PictureFolder)
    build_shards(plain, tmp_path / "shards", ShardPlan(kind="folder"), is_shown=False)
    shards = open_store(tmp_path / "shards")
    assert isinstance(shards, ShardStore)
    assert shards.summary() == plain.summary()


def test_a_folder_is_described(picture_folder: Path) -> None:
    lines = describe_folder(picture_folder, crops=CropConfig(num_local=3))
    assert lines[0] == f"{picture_folder} holds plain pictures:"
    assert lines[1] == "23 pictures, 16 of them with captions (alt 16, gemini 8)"
    assert "3 crops each" in lines[-2]
