"""What a data set is said to hold, and to be used for."""

from training.data.captions import CaptionSampling
from training.data.crops import TIPSV2_CROPS, CropConfig
from training.data.shards.sample import DataSummary, Sample, describe, summarize, total


def test_samples_are_counted(samples: list[Sample]) -> None:
    summary = summarize(samples)
    assert summary == DataSummary(
        num_images=23, num_captioned=16, num_named=5, caption_sources={"alt": 16, "gemini": 8}
    )
    assert total([summarize(samples[:9]), summarize(samples[9:])]) == summary
    assert summarize([]) == DataSummary()


def test_a_data_set_with_captions_says_what_each_token_gets() -> None:
    summary = DataSummary(
        num_images=10, num_captioned=7, caption_sources={"alt": 5, "paligemma": 7}
    )
    lines = describe(summary, captions=CaptionSampling(), crops=TIPSV2_CROPS)
    assert lines == (
        "10 images, 7 of them with captions (alt 5, paligemma 7)",
        "CLS1 with captions: 7 images, from alt 5; an image without any of these takes whatever "
        "caption it has",
        "CLS2 with captions: 7 images, from paligemma 7, gemini 0",
        "contrast with names: off, for no image lists what it shows",
        "local crops to global: all 10 images, 6 crops each",
        "patches: all 10 images",
    )


def test_captions_of_other_sources_are_used_and_the_setting_is_named() -> None:
    summary = DataSummary(num_images=3, num_captioned=3, caption_sources={"alt": 3, "scene": 3})
    line = describe(summary, captions=CaptionSampling(), crops=CropConfig())[2]
    assert "from whatever each has, for none has paligemma or gemini; data.captions.cls2" in line


def test_a_data_set_without_captions_says_that_the_text_tower_learns_nothing() -> None:
    summary = DataSummary(num_images=4, num_named=2)
    lines = describe(summary, captions=CaptionSampling(), crops=CropConfig())
    assert lines == (
        "4 images, 0 of them with captions",
        "contrast with captions: off, for there are none; the text tower learns nothing",
        "contrast with names: 2 images, whose content is listed",
        "local crops to global: off, for crops.num_local is 0",
        "patches: all 4 images",
    )
