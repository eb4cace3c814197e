"""One sample and its files, and counts of a data set."""

import json

import pytest

from training.data.captions import CaptionSampling
from training.data.crops import TIPSV2_CROPS, CropConfig
from training.data.shards.sample import (
    BadSample,
    DataSummary,
    Sample,
    describe,
    sample_from_members,
    split_name,
    summarize,
    total,
)


def test_a_sample_survives_its_files(samples: list[Sample]) -> None:
    for sample in samples:
        assert sample_from_members(sample.members()) == sample


def test_url_and_license_are_kept_with_the_captions(samples: list[Sample]) -> None:
    record = json.loads(samples[0].members()["000000000.json"])
    assert record["url"] == "https://example.org/0"
    assert record["license"] == "CC0-1.0"
    assert set(record["captions"]) == {"alt", "gemini"}


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("0001.jpg", "0001", ".jpg"),
        ("a.b/0001.JPG", "a.b/0001", ".jpg"),
        ("0001.cls.json", "0001", ".cls.json"),
        ("0001", "0001", ""),
    ],
)
def test_a_name_splits_at_its_first_dot(name: str, key: str, suffix: str) -> None:
    assert split_name(name) == (key, suffix)


def test_others_captions_count_as_alt_text() -> None:
    record = {"caption": "from the record", "url": "u"}
    members = {"1.jpg": b"x", "1.json": json.dumps(record).encode()}
    assert sample_from_members(members).captions == {"alt": "from the record"}
    assert sample_from_members(members).fields["url"] == "u"
    assert sample_from_members({"1.jpg": b"x", "1.txt": b" a text\n"}).captions == {"alt": "a text"}
    ours = {"captions": {"alt": "by source", "gemini": "long"}}
    both = {"1.jpg": b"x", "1.json": json.dumps(ours).encode(), "1.txt": b"a text"}
    assert sample_from_members(both).captions == {"alt": "by source", "gemini": "long"}


def test_empty_captions_are_none() -> None:
    record = {"captions": {"alt": " ", "gemini": None}}
    assert (
        sample_from_members({"1.png": b"x", "1.json": json.dumps(record).encode()}).captions == {}
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.json": b"{}"}, "no image"),
        ({"1.jpg": b"x", "1.json": b"{"}, "no JSON"),
        ({"1.jpg": b"x", "1.json": b"[]"}, "no JSON object"),
        ({"1.jpg": b"x", "1.json": b'{"captions": ["a"]}'}, "captions"),
        ({"1.jpg": b"x", "1.json": b'{"captions": {"alt": 3}}'}, "captions"),
        ({"1.jpg": b"x", "1.json": b'{"names": "dog"}'}, "names"),
        ({"1.jpg": b"x", "1.txt": b"\xff\xfe\xfa"}, "UTF-8"),
    ],
)
def test_what_cannot_be_used_says_why(members: dict[str, bytes], message: str) -> None:
    with pytest.raises(BadSample, match=message):
        sample_from_members(members)


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
        "CLS1 with captions: 7 images, from alt 5; images without any of these use "
        "their other captions",
        "CLS2 with captions: 7 images, from paligemma 7, gemini 0",
        "contrast with names: off, no image has a list of its objects",
        "local crops to global: all 10 images, 6 crops each",
        "patches: all 10 images",
    )


def test_captions_of_other_sources_are_used_and_the_setting_is_named() -> None:
    summary = DataSummary(num_images=3, num_captioned=3, caption_sources={"alt": 3, "scene": 3})
    line = describe(summary, captions=CaptionSampling(), crops=CropConfig())[2]
    assert "from any source, because none has paligemma or gemini; set data.captions.cls2" in line


def test_a_data_set_without_captions_says_that_the_text_tower_learns_nothing() -> None:
    summary = DataSummary(num_images=4, num_named=2)
    lines = describe(summary, captions=CaptionSampling(), crops=CropConfig())
    assert lines == (
        "4 images, 0 of them with captions",
        "contrast with captions: off, there are no captions; the text tower is not trained",
        "contrast with names: 2 images with lists of their objects",
        "local crops to global: off, crops.num_local is 0",
        "patches: all 4 images",
    )
