"""A sample and its files."""

import json

import pytest

from training.data.shards.sample import BadSample, Sample, sample_from_members, split_name


def test_a_sample_survives_its_files(samples: list[Sample]) -> None:
    for sample in samples:
        assert sample_from_members(sample.members()) == sample


def test_url_and_license_are_kept_beside_the_captions(samples: list[Sample]) -> None:
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
