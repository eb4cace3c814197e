"""What is said of each loss on images from disk, and which ones are refused."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from training.config import TrainingConfig
from training.data.crops import CropConfig
from training.data.shards.batches import ShardsConfig
from training.data.shards.sample import DataSummary
from training.inputs.images import check_losses, describe_losses
from training.methods.distill import DistillConfig
from training.methods.image_backbone import ImageBackboneConfig
from training.methods.pretrain import PretrainConfig
from training.methods.terms import NameContrastConfig

Configure = Callable[[Path], TrainingConfig]
CAPTIONED = DataSummary(
    num_images=9, num_captioned=6, num_named=2, caption_sources={"alt": 6, "gemini": 2}
)
BARE = DataSummary(num_images=9)


def said(config: TrainingConfig, counts: DataSummary) -> Sequence[str]:
    assert isinstance(config.data, ShardsConfig)
    return describe_losses(config, config.data, counts)


def distilling(config: TrainingConfig, **method: object) -> TrainingConfig:
    return replace(config, method=DistillConfig(**method), teacher=Path("giant"))  # type: ignore[arg-type]


def test_captioned_images_feed_every_loss_of_the_paper(on_images: Configure) -> None:
    lines = said(on_images(Path("x")), CAPTIONED)
    assert lines[0] == (
        "contrast with captions: on, weight 1; "
        "3 images without a caption take part in the other losses"
    )
    assert lines[1] == "  CLS1 with captions: 6 images, from alt 6"
    assert lines[2].startswith("  CLS2 with captions: 6 images, from paligemma 0, gemini 2; ")
    assert lines[3] == "contrast with names: off, for method.names.weight is 0"
    assert lines[4] == "local crops (DINO): on, weight 1, 2 crops of 14 x 14 pixels of every image"
    assert lines[5] == "patches: on, weight 2, iBOT++, every patch, 75% masked"


def test_images_without_captions_switch_their_contrast_off(on_images: Configure) -> None:
    config = distilling(on_images(Path("x")), patch_loss="features")
    lines = said(config, BARE)
    assert lines[0] == "contrast with captions: off, for no image has a caption"
    assert lines[1].startswith("text tower: random, and it learns nothing")
    assert lines[-1] == "patches: on, weight 2, every patch from the teacher's features, no mask"
    taught = said(distilling(on_images(Path("x")), text_start="teacher"), BARE)
    assert taught[1].startswith("text tower: the teacher's, unchanged")
    started = said(replace(config, start=Path("runs/old")), BARE)
    assert started[1] == "text tower: that of runs/old, unchanged"


def test_what_a_setting_switches_off_is_named(on_images: Configure) -> None:
    config = on_images(Path("x"))
    method = PretrainConfig(contrast_weight=0.0, dino_weight=0.0, ibot_weight=0.0, ema="full")
    assert said(replace(config, method=method), CAPTIONED) == (
        "contrast with captions: off, for method.contrast_weight is 0",
        "contrast with names: off, for method.names.weight is 0",
        "local crops (DINO): off, for method.dino_weight is 0",
        "patches: off, for method.ibot_weight is 0",
    )
    assert said(distilling(config, patch_weight=0.0), BARE)[-1].endswith("patch_weight is 0")
    assert isinstance(config.data, ShardsConfig)
    whole = replace(config, data=replace(config.data, crops=CropConfig(global_size=28)))
    assert said(whole, BARE)[-2].endswith("off, for data.crops.num_local is 0")


def test_names_are_used_where_they_are_listed(on_images: Configure) -> None:
    config = on_images(Path("x"))
    named = replace(config, method=PretrainConfig(names=NameContrastConfig(weight=0.5)))
    assert "contrast with names: on, weight 0.5, 2 images, whose content is listed" in said(
        named, CAPTIONED
    )
    assert "contrast with names: off, for no image lists what it shows" in said(named, BARE)


def test_ablations_are_told_apart(on_images: Configure) -> None:
    config = on_images(Path("x"))
    ibot = replace(config, method=PretrainConfig(supervised="masked", mask_ratio=0.5))
    assert said(ibot, CAPTIONED)[-1] == "patches: on, weight 2, iBOT, masked patches, 50% masked"
    masked = distilling(config, supervised="masked", mask_ratio=0.75)
    assert said(masked, CAPTIONED)[-1] == (
        "patches: on, weight 2, masked patches from the teacher's assignments to its prototypes, "
        "75% masked"
    )


def test_pretraining_without_captions_would_collapse(on_images: Configure) -> None:
    config = on_images(Path("x"))
    with pytest.raises(ValueError, match=r"needs captions.*distil a teacher"):
        check_losses(config, BARE)
    check_losses(config, CAPTIONED)
    check_losses(distilling(config), BARE)
    check_losses(replace(config, method=PretrainConfig(ema="full")), BARE)


def test_titles_need_drawn_scenes_and_the_backbone_does_not(on_images: Configure) -> None:
    config = on_images(Path("x"))
    titles = ImageBackboneConfig(weight=1.0, titles_weight=1.0)
    with pytest.raises(ValueError, match="needs drawn scenes"):
        check_losses(replace(config, method=PretrainConfig(image_backbone=titles)), CAPTIONED)
    backbone = replace(titles, titles_weight=0.0)
    with_backbone = replace(config, method=PretrainConfig(image_backbone=backbone))
    check_losses(with_backbone, CAPTIONED)
    assert said(with_backbone, CAPTIONED)[-1] == (
        "image backbone: on, every patch until 30% of the steps"
    )
