"""Images of a data set become tensors; any other file is a bad sample with a reason."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from model.image_codec import ImageLimits
from training.data.shards.decoding import DEFAULT_LIMITS, decode_tensor
from training.data.shards.sample import BadSample

Encode = Callable[..., bytes]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_three_formats_are_decoded(encode: Encode, kind: str) -> None:
    image_3HW = decode_tensor(encode(3, kind=kind), DEFAULT_LIMITS)
    assert image_3HW.shape == (3, 30, 40)
    assert image_3HW.dtype == torch.uint8
    colour = image_3HW.float().mean((1, 2))
    torch.testing.assert_close(colour, torch.tensor([27.0, 15.0, 200.0]), atol=3, rtol=0)


def test_a_large_jpeg_is_reduced_as_far_as_allowed(encode: Encode) -> None:
    large = encode(1, size=(400, 320), kind="JPEG")
    assert decode_tensor(large, DEFAULT_LIMITS).shape == (3, 320, 400)
    assert decode_tensor(large, DEFAULT_LIMITS, wanted_side=100).shape == (3, 160, 200)
    assert decode_tensor(large, DEFAULT_LIMITS, wanted_side=300).shape == (3, 320, 400)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (replace(DEFAULT_LIMITS, max_bytes=20), "bytes"),
        (replace(DEFAULT_LIMITS, max_pixels=1000), "40 x 30 pixels, at most"),
        (replace(DEFAULT_LIMITS, min_side=31), "at least 31"),
    ],
)
def test_an_image_outside_the_limits_is_a_bad_sample(
    encode: Encode, limits: ImageLimits, message: str
) -> None:
    with pytest.raises(BadSample, match=message):
        decode_tensor(encode(0), limits)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_images_and_other_formats_are_bad_samples(kind: str) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    Image.fromarray(noise).save(stream, kind)
    whole = stream.getvalue()
    for data in (b"", whole if kind == "GIF" else whole[: len(whole) // 2]):
        with pytest.raises(BadSample, match="cannot be decoded"):
            decode_tensor(data, DEFAULT_LIMITS)
