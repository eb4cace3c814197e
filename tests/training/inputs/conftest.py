"""A run on small coloured images, with captions beside some of them or none."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from training.config import TrainingConfig
from training.data.crops import CropConfig
from training.data.shards.batches import ShardsConfig

MakeFolder = Callable[..., Path]
SMALL_CROPS = CropConfig(global_size=28, num_local=2, local_size=14, flips="all")


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Fill a folder with images; so many have an alt text, so many a long caption as well."""

    def make(name: str = "images", *, images: int = 6, alt: int = 0, long: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(images):
            path = folder / f"{number}.png"
            Image.new("RGB", (40, 30), (30 * number, 90, 120)).save(path)
            if number < long:
                captions = {"alt": f"image {number}", "gemini": f"all of image {number}"}
                path.with_suffix(".json").write_text(json.dumps({"captions": captions}))
            elif number < alt:
                path.with_suffix(".txt").write_text(f"image {number}\n")
        return folder

    return make


@pytest.fixture
def on_images(tiny_config: TrainingConfig) -> Callable[[Path], TrainingConfig]:
    """The tiny run on the images of a folder."""

    def configure(folder: Path) -> TrainingConfig:
        data = ShardsConfig(folder=folder, crops=SMALL_CROPS, num_workers=0)
        return replace(tiny_config, data=data, num_steps=3, batch_size=2)

    return configure
