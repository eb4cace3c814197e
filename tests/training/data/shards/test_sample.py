"""One sample and its files, and counts of a data set."""

import json

import pytest

from training.data.shards.sample import (
    BadSample,
    DataSummary,
    Sample,
    sample_from_members,
    split_name,
    summarize,
    total,
)


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("a.b/0001.JPG", "a.b/0001", ".jpg"),
        ("0001.cls.json", "0001", ".cls.json"),
        ("0001", "0001", ""),
    ],
)
def test_a_name_splits_at_its_first_dot(name: str, key: str, suffix: str) -> None:
    assert split_name(name) == (key, suffix)


def test_captions_of_other_formats_count_as_alt_text() -> None:
    record = {"caption": "from the record", "url": "u"}
    members = {"1.jpg": b"x", "1.json": json.dumps(record).encode()}
    assert sample_from_members(members).captions == {"alt": "from the record"}
    assert sample_from_members(members).fields["url"] == "u"
    assert sample_from_members({"1.jpg": b"x", "1.txt": b" a text\n"}).captions == {"alt": "a text"}
    ours = {"captions": {"alt": "by source", "gemini": "long"}}
    both = {"1.jpg": b"x", "1.json": json.dumps(ours).encode(), "1.txt": b"a text"}
    assert sample_from_members(both).captions == {"alt": "by source", "gemini": "long"}
    empty = {"captions": {"alt": " ", "gemini": None}}
    assert sample_from_members({"1.png": b"x", "1.json": json.dumps(empty).encode()}).captions == {}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.json": b"{}"}, "no image"),
        ({"1.jpg": b"x", "1.json": b"{"}, "no JSON"),
        ({"1.jpg": b"x", "1.json": b"[]"}, "no JSON object"),
        ({"1.jpg": b"x", "1.json": b'{"captions": {"alt": 3}}'}, "captions"),
        ({"1.jpg": b"x", "1.json": b'{"names": "dog"}'}, "names"),
        ({"1.jpg": b"x", "1.txt": b"\xff\xfe\xfa"}, "UTF-8"),
    ],
)
def test_unusable_samples_are_refused_with_a_reason(
    members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(BadSample, match=message):
        sample_from_members(members)


def test_samples_are_counted(samples: list[Sample]) -> None:
    summary = summarize(samples)
    assert summary == DataSummary(
        num_images=23, num_captioned=16, num_named=5, caption_sources={"alt": 16, "gemini": 8}
    )
    assert total([summarize(samples[:9]), summarize(samples[9:])]) == summary
    assert summarize([]) == DataSummary()
