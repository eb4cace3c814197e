"""One sample: its files, its captions and its counts."""

import json
from collections.abc import Callable

import pytest

from training.data.shards.sample import sample_from_members, summarize

Encode = Callable[..., bytes]


@pytest.mark.parametrize(
    ("record", "text", "captions"),
    [
        ({"caption": "from the record", "url": "u"}, None, {"alt": "from the record"}),
        (None, b" a text\n", {"alt": "a text"}),
        ({"captions": {"alt": "a", "gemini": "a"}}, b"a\n", {"alt": "a", "gemini": "a"}),
        (
            {"captions": {"gemini": "long"}},
            b"one\n\ntwo",
            {"gemini": "long", "alt": "one", "alt#2": "two"},
        ),
        ({"captions": ["one", " two ", "one"]}, None, {"alt": "one", "alt#2": "two"}),
        ({"captions": {"alt": " ", "gemini": None}}, None, {}),
    ],
)
def test_captions_without_a_source_count_as_alt_text(
    record: dict[str, object] | None, text: bytes | None, captions: dict[str, str]
) -> None:
    members = {"1.jpg": b"x"}
    members |= {} if record is None else {"1.json": json.dumps(record).encode()}
    members |= {} if text is None else {"1.txt": text}
    assert sample_from_members(members).captions == captions


@pytest.mark.parametrize(
    ("files", "kept", "reason"),
    [
        ({"json": b"{", "txt": b"good"}, {"alt": "good"}, "the .json file is no JSON"),
        ({"json": b"[]"}, {}, "the .json file is no JSON object"),
        ({"json": b'{"captions": ["good", 3]}'}, {"alt": "good"}, "a caption is no text"),
        ({"json": b'{"captions": 3}'}, {}, "a caption is no text"),
        ({"txt": b"\xff\xfe\xfa"}, {}, "the .txt file is no UTF-8"),
    ],
)
def test_a_bad_caption_is_left_out_and_its_image_is_kept(
    files: dict[str, bytes], kept: dict[str, str], reason: str
) -> None:
    members = {f"1.{suffix}": content for suffix, content in files.items()}
    sample = sample_from_members({"1.jpg": b"x", **members})
    assert (sample.image, sample.captions) == (b"x", kept)
    counts = str(summarize([sample, sample]))
    assert counts.startswith("2 images")
    assert f"captions left out: {reason} (2)" in counts
