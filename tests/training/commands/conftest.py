"""Teachers of two widths as folders, and folders of images with captions or without."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from transformers import Tipsv2Tokenizer

from training.config import ModelConfig, TrainingConfig
from training.run import new_model


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """Fill a folder with six images; so many of them have captions."""

    def make(name: str, *, captioned: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(6):
            path = folder / f"{number}.png"
            Image.new("RGB", (40, 30), (40 * number, 90, 120)).save(path)
            if number < captioned:
                path.with_suffix(".txt").write_text(f"a plain wall, number {number}")
        return folder

    return make


@pytest.fixture
def make_teacher(
    tiny_config: TrainingConfig, tokenizer: Tipsv2Tokenizer, tmp_path: Path
) -> Callable[[ModelConfig], Path]:
    """Leave an untrained model and its tokenizer as transformers writes a released one."""

    def make(size: ModelConfig) -> Path:
        folder = tmp_path / f"teacher-{size.dim}"
        model = new_model(replace(tiny_config, model=size), len(tokenizer))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make
