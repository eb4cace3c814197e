"""Images from disk as inputs: what is said of them, their words, their batches."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import Tipsv2Tokenizer

from training.config import TrainingConfig
from training.data.shards.batches import RunShare
from training.data.shards.image_folder import ImageFolder
from training.data.shards.writing import ShardPlan, build_shards
from training.inputs.images import BROKEN_FILE, ImageInputs
from training.run import open_inputs

Configure = Callable[[Path], TrainingConfig]
MakeFolder = Callable[..., Path]


def test_the_first_line_counts_images_and_captions(
    on_images: Configure, make_folder: MakeFolder
) -> None:
    folder = make_folder(alt=5, long=2)
    first = open_inputs(on_images(folder)).describe()[0]
    assert first == (
        f"data: 6 images in {folder}, a plain folder, 5 of them with captions (alt 5, gemini 2)"
    )


def test_shards_give_the_same_words_as_the_folder_they_were_made_of(
    on_images: Configure, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder, shards = make_folder(alt=5, long=2), tmp_path / "shards"
    build_shards(
        ImageFolder(folder), shards, ShardPlan(kind="folder", shard_size=4), is_shown=False
    )
    plain, packed = (open_inputs(on_images(path)) for path in (folder, shards))
    assert packed.tokenizer_texts() == plain.tokenizer_texts()
    assert "shards, 5 of them" in packed.describe()[0]
    assert packed.describe()[1:] == plain.describe()[1:]
    assert packed.facts()["digest"] != plain.facts()["digest"]


def test_the_tokenizer_learns_from_the_captions_alone(
    on_images: Configure, make_folder: MakeFolder
) -> None:
    inputs = open_inputs(on_images(make_folder(alt=3, long=1)))
    assert inputs.tokenizer_texts() == ["image 0", "all of image 0", "image 1", "image 2"]
    assert inputs.warm_up_texts() == inputs.tokenizer_texts()
    assert inputs.benchmarks() == ()


def test_the_digest_changes_with_the_images(on_images: Configure, make_folder: MakeFolder) -> None:
    few, more = (make_folder(name, images=n, alt=2) for name, n in (("few", 3), ("more", 4)))
    digests = {open_inputs(on_images(path)).facts()["digest"] for path in (few, more)}
    assert len(digests) == 2


def test_broken_images_are_listed_in_the_runs_folder(
    on_images: Configure, make_folder: MakeFolder, tokenizer: Tipsv2Tokenizer
) -> None:
    folder = make_folder(alt=6)
    (folder / "3.png").write_bytes(b"not an image")
    config = on_images(folder)
    inputs = open_inputs(config)
    assert isinstance(inputs, ImageInputs)
    batches = inputs.batches(tokenizer, RunShare(batch_size=2, num_steps=3))
    assert sum(len(batch.pixels_B3HW) for batch in batches.loader(0, num_workers=0)) == 6
    listed = (config.folder / BROKEN_FILE).read_text(encoding="utf-8").splitlines()
    assert len(listed) == 1
    assert "3.png" in listed[0]


def test_a_folder_without_images_is_refused(on_images: Configure, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no image"):
        open_inputs(on_images(tmp_path))
