"""One sample: its files, its image as a tensor, its counts; a bad one is refused with a reason."""

import io
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from training.data.shards import decoding
from training.data.shards.decoding import decode_tensor
from training.data.shards.sample import (
    BadSample,
    sample_from_members,
    summarize,
    total,
)

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
    counts = str(total([summarize(sample), summarize(sample)]))
    assert counts.startswith("2 images")
    assert f"captions left out: {reason} (2)" in counts


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_bytes": 20}, "bytes"),
        ({"max_pixels": 1000}, "40 x 30 pixels, at most"),
        ({"min_side": 31}, "at least 31"),
    ],
)
def test_an_image_outside_the_limits_is_a_bad_sample(
    encode: Encode, limit: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "LIMITS", replace(decoding.LIMITS, **limit))
    with pytest.raises(BadSample, match=message):
        decode_tensor(encode(0))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_images_and_other_formats_are_bad_samples(kind: str) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    Image.fromarray(noise).save(stream, kind)
    whole = stream.getvalue()
    for data in (b"", whole if kind == "GIF" else whole[: len(whole) // 2]):
        with pytest.raises(BadSample, match="cannot be decoded"):
            decode_tensor(data)
