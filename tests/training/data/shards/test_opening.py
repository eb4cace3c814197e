"""A folder is opened as what it is."""

from pathlib import Path

from training.data.crops import CropConfig
from training.data.shards.image_folder import ImageFolder, describe_folder, open_store
from training.data.shards.manifest import ShardStore
from training.data.shards.writing import ShardPlan, build_shards


def test_shards_and_plain_images_are_told_apart(tmp_path: Path, image_folder: Path) -> None:
    plain = open_store(image_folder)
    assert isinstance(plain, ImageFolder)
    build_shards(plain, tmp_path / "shards", ShardPlan(kind="folder"), is_shown=False)
    shards = open_store(tmp_path / "shards")
    assert isinstance(shards, ShardStore)
    assert shards.summary() == plain.summary()


def test_a_folder_is_described(image_folder: Path) -> None:
    lines = describe_folder(image_folder, crops=CropConfig(num_local=3))
    assert lines[0] == f"{image_folder} holds plain images:"
    assert lines[1] == "23 images, 16 of them with captions (alt 16, gemini 8)"
    assert "3 crops each" in lines[-2]
