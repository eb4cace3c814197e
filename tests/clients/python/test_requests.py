"""Images and options become requests."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tipserve_client import Example, InvalidRequest, grpc_wire, http_wire
from tipserve_client.generated.segment_pb2 import PROMPT_POOL_MAX, PROMPT_POOL_UNSPECIFIED
from tipserve_client.images import encode_image
from tipserve_client.requests import Request, as_images, class_list, make_request


def decoded(raw: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(raw)))


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1, 3), (6, 4)])
def test_an_array_is_sent_without_loss(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(decoded(encode_image(pixels)), pixels)
    np.testing.assert_array_equal(decoded(encode_image(pixels[::-1])), pixels[::-1])


def test_floats_and_tensors_are_rounded_to_8_bits() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    floats = torch.from_numpy(pixels / 255).permute(2, 0, 1)
    same: list[Any] = [floats, floats.half(), floats.requires_grad_(), torch.from_numpy(pixels)]
    for image in [*same, pixels / 255, np.moveaxis(pixels, 2, 0), np.moveaxis(pixels, 2, 0) / 255]:
        np.testing.assert_array_equal(decoded(encode_image(image)), pixels)
    batch = torch.stack([floats.detach(), 1 - floats.detach()])
    sent = make_request("embed_images", {}, images=batch).images
    np.testing.assert_array_equal([decoded(one) for one in sent], [pixels, 255 - pixels])


def test_files_bytes_and_pil_images(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 3), (10, 20, 30))
    raw = encode_image(image)
    np.testing.assert_array_equal(decoded(raw), np.asarray(image))
    path = tmp_path / "a.png"
    path.write_bytes(raw)
    assert encode_image(path) == encode_image(str(path)) == encode_image(raw) == raw


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((2, 2, 3), np.int64), "int64"),
        (np.zeros((1, 2, 2), np.float32), r"float32 \[1, 2, 2\]"),
        (np.zeros((1, 3, 2, 2), np.float32), r"\[1, 3, 2, 2\]"),
        (np.full((2, 2, 3), 1.5), "0 to 1, not from 1.5 to 1.5. Divide"),
        (np.full((2, 2, 3), -0.1), "undo the normalization"),
        (np.full((2, 2, 3), np.nan), "from 0 to 1, not from nan"),
        (np.zeros((3, 2, 3), np.uint8), "may be first or last"),
        (torch.zeros((3, 2, 2), dtype=torch.bfloat16), "NumPy cannot read"),
        (np.zeros((2, 2, 4), np.uint8), r"\[2, 2, 4\]"),
        (np.zeros((0, 2, 3), np.uint8), r"\[0, 2, 3\]"),
        ("/no/such/file.jpg", "No such file"),
        (7, "not int"),
        (Image.new("CMYK", (2, 2)), "cannot write mode CMYK as PNG. Convert it to RGB"),
    ],
)
def test_an_invalid_image_is_refused_before_it_is_sent(image: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        encode_image(image, "images[3]")
    assert caught.value.index == 3


def test_one_image_is_a_list_of_one() -> None:
    array, path = np.zeros((2, 2, 3), np.uint8), Path("a")
    for one in (array, "a", b"a", path, Image.new("RGB", (1, 1))):
        assert list(as_images(one)) == [one]
    assert list(as_images([path, "a"])) == [path, "a"]


def test_classes_are_names_or_names_with_prompts() -> None:
    assert class_list(["dog"]) == [{"name": "dog", "prompts": []}]
    assert class_list({"dog": ["a dog"]}) == [{"name": "dog", "prompts": ["a dog"]}]
    assert class_list({"dog": "a dog"}) == class_list({"dog": ["a dog"]})


def test_a_pool_is_that_of_every_class_with_prompts() -> None:
    classes = {"dog": ["spaniel", "pug"], "sky": []}
    given = {"pool": "max", "background_classes": {"wall": "bricks"}}
    request = make_request("segment_images", given, images=b"x", classes=classes)
    sent = json.loads(http_wire.write_request(request)["content"])
    message = grpc_wire.write_request(request)
    assert [one.get("pool") for one in sent["classes"]] == ["max", None]
    assert [one.pool for one in message.classes] == [PROMPT_POOL_MAX, PROMPT_POOL_UNSPECIFIED]
    assert sent["background_classes"][0]["pool"] == "max"
    assert "pool" not in sent


def test_examples_have_their_fields_and_need_json() -> None:
    mask = {"size": (2, 3), "counts": b"6"}
    examples = [Example(point=(1, 2)), Example(image=1, box=(0, 0, 1, 1)), Example(mask=mask)]
    fields = {"classes": class_list({"dog": examples})}
    (entry,) = fields["classes"]
    assert entry == {
        "name": "dog",
        "prompts": [],
        "examples": [
            {"image": 0, "point": [1, 2]},
            {"image": 1, "box": [0, 0, 1, 1]},
            {"image": 0, "mask": {"size": [2, 3], "counts": "6"}},
        ],
    }
    request = Request(method="segment_images", images=(b"x",), fields=fields)
    assert json.loads(http_wire.write_request(request)["content"])["classes"] == [entry]
    (sent,) = grpc_wire.write_request(request).classes
    assert (sent.examples[0].point.y, sent.examples[1].image) == (2, 1)
    assert sent.examples[2].mask.counts == "6"


@pytest.mark.parametrize(("name", "kind"), [("dog", "jpeg"), ("a, b", "json"), (" dog", "json")])
def test_names_that_a_query_would_change_are_sent_as_json(name: str, kind: str) -> None:
    request = make_request("segment_images", {}, images=b"x", classes=[name])
    assert kind in http_wire.write_request(request)["headers"]["Content-Type"]


def test_json_holds_what_only_the_server_refuses() -> None:
    request = make_request("embed_texts", {}, texts="\ud800")
    assert json.loads(http_wire.write_request(request)["content"])["texts"] == ["\ud800"]
    given = {"temperature": float("nan")}
    request = make_request("classify_images", given, images=b"x", classes={"dog": ["pug"]})
    assert b"NaN" in http_wire.write_request(request)["content"]
