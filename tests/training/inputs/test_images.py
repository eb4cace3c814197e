"""Images from disk as inputs, and the losses that they allow."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import Tipsv2Tokenizer

from training.config import TrainingConfig
from training.data.batch import RunShare
from training.data.crops import CropConfig
from training.data.shards.batches import ShardsConfig
from training.data.shards.sample import DataSummary
from training.data.shards.store import ImageFolder, build_shards
from training.evaluate.ranking import ClassificationBenchmark
from training.inputs.images import BROKEN_FILE, ImageInputs, check_losses, describe_losses
from training.methods.captioned import ImageBackboneConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.observation import read_log
from training.run import open_inputs, run

Configure = Callable[..., TrainingConfig]
MakeImages = Callable[..., Path]
CAPTIONED = DataSummary(num_images=9, num_captioned=6, caption_sources={"alt": 6, "gemini": 2})
BARE = DataSummary(num_images=9)


@pytest.fixture
def on_images(tiny_config: TrainingConfig) -> Configure:
    """The tiny run on the images of a folder."""

    def configure(folder: Path = Path("x"), **changes: Any) -> TrainingConfig:
        crops = CropConfig(global_size=28, num_local=2, local_size=14)
        data = ShardsConfig(folder=folder, crops=crops, num_workers=0)
        return replace(tiny_config, data=data, num_steps=3, batch_size=2, **changes)

    return configure


def test_the_tokenizer_learns_from_captions_and_shards_give_those_of_their_folder(
    on_images: Configure, make_images: MakeImages, tmp_path: Path
) -> None:
    folder = make_images(captioned=3)
    captions = {"alt": "image 4", "gemini": "all of image 4"}
    (folder / "4.json").write_text(json.dumps({"captions": captions}))
    build_shards(ImageFolder(folder), tmp_path / "shards", 4)
    plain, packed = (open_inputs(on_images(path)) for path in (folder, tmp_path / "shards"))
    walls = [f"a plain wall, number {number}" for number in range(3)]
    assert plain.tokenizer_texts() == [*walls, "image 4", "all of image 4"]
    assert plain.warm_up_texts() == packed.tokenizer_texts() == plain.tokenizer_texts()
    assert plain.benchmarks() == ()
    assert "shards: 6 images, 4 of them" in packed.describe()[0]
    assert packed.describe()[1:] == plain.describe()[1:]
    assert packed.facts()["digest"] != plain.facts()["digest"]


def test_a_run_is_scored_on_the_folders_of_its_probe(
    on_images: Configure, make_images: MakeImages, tmp_path: Path
) -> None:
    for number, name in enumerate(("red_panda", "cat", "cat", "cat")):
        path = tmp_path / "probe" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 30), (60 * number, 0, 0)).save(path)
    config = on_images(make_images(captioned=6))
    assert isinstance(config.data, ShardsConfig)
    data = replace(config.data, probe=tmp_path / "probe")
    with pytest.raises(ValueError, match="set validate_every above 0"):
        replace(config, data=data)
    config = replace(config, data=data, validate_every=2)
    (probe,) = open_inputs(config).benchmarks()
    assert isinstance(probe, ClassificationBenchmark)
    assert (list(probe.names), len(probe.images)) == (["cat", "red panda"], 4)
    assert {image.shape for image in probe.images} == {(28, 28, 3)}
    run(config)
    scores = [row.get("probe/top-1") for row in read_log(config.folder)]
    assert scores[0] is None
    assert all(score in (0, 25, 50, 75, 100) for score in scores[1:])


def test_broken_images_are_listed_in_the_runs_folder(
    on_images: Configure, make_images: MakeImages, tokenizer: Tipsv2Tokenizer
) -> None:
    folder = make_images(captioned=6)
    (folder / "3.png").write_bytes(b"not an image")
    config = on_images(folder)
    inputs = open_inputs(config)
    assert isinstance(inputs, ImageInputs)
    batches = inputs.batches(tokenizer, RunShare(batch_size=2, num_steps=3))
    assert sum(len(batch.pixels_B3HW) for batch in batches.loader(0, num_workers=0)) == 6
    (listed,) = (config.folder / BROKEN_FILE).read_text(encoding="utf-8").splitlines()
    assert "3.png" in listed


def said(config: TrainingConfig, counts: DataSummary, **data: Any) -> Sequence[str]:
    assert isinstance(config.data, ShardsConfig)
    return describe_losses(config, replace(config.data, **data), counts)


@pytest.mark.parametrize(
    ("text_start", "start", "text_tower"),
    [
        ("fresh", None, "random and not trained"),
        ("teacher", None, "the teacher's"),
        ("fresh", Path("runs/old"), "that of runs/old"),
    ],
)
def test_without_captions_their_contrast_is_off(
    on_images: Configure, text_start: Any, start: Path | None, text_tower: str
) -> None:
    method = DistillConfig(patch_loss="features", text_start=text_start)
    lines = said(on_images(method=method, teacher=Path("giant"), start=start), BARE)
    assert lines[0].startswith("contrast with captions: off")
    assert lines[1].startswith(f"text tower: {text_tower}")
    assert lines[-1].startswith("patches: on, weight 2, every patch")


def test_losses_that_the_data_cannot_serve_are_refused(on_images: Configure) -> None:
    config = on_images()
    with pytest.raises(ValueError, match=r"needs captions.*distil a teacher"):
        check_losses(config, BARE)
    check_losses(config, CAPTIONED)
    check_losses(replace(config, method=DistillConfig(), teacher=Path("giant")), BARE)
    check_losses(replace(config, method=PretrainConfig(ema="full")), BARE)
    titles = ImageBackboneConfig(weight=1.0, titles_weight=1.0)
    for method in (PretrainConfig(image_backbone=titles), PretrainConfig(names_weight=1.0)):
        with pytest.raises(ValueError, match="need drawn scenes"):
            check_losses(replace(config, method=method), CAPTIONED)
    backbone = PretrainConfig(image_backbone=replace(titles, titles_weight=0.0))
    check_losses(replace(config, method=backbone), CAPTIONED)
    lines = said(replace(config, method=backbone), CAPTIONED)
    assert lines[-1].startswith("image backbone: on")
    assert lines[3].startswith("local crops (DINO): on, weight 1, 2 crops of 14 x 14 pixels")
