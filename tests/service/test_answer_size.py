"""The size of answers is known before the work."""

import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.answer_size import answer_size, check_answer_size
from service.errors import RequestTooLarge
from service.messages import (
    EmbedImagesRequest,
    EstimateMapsRequest,
    SegmentClass,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)
from tests.service.conftest import DIM, Encode, Serving, until

SIZE = (150, 110)
DOG, SKY = SegmentClass(name="dog"), SegmentClass(name="sky")
MEDIA = {
    "bytes": {"accept": "application/octet-stream"},
    "png": {"accept": "image/png"},
    "list": {"accept": "application/json"},
    "base64": {"accept": "application/json", "encoding": "base64"},
}


@pytest.mark.parametrize("encoding", MEDIA)
@pytest.mark.parametrize(
    ("path", "request_type", "fields"),
    [
        ("segment", SegmentImagesRequest, {"classes": (DOG, SKY), "include_scores": True}),
        ("segment", SegmentImagesRequest, {"classes": (DOG, SKY), "include_instances": True}),
        ("features", VisualizeFeaturesRequest, {"kind": "colors"}),
        ("features", VisualizeFeaturesRequest, {"kind": "component"}),
        ("features", VisualizeFeaturesRequest, {"kind": "groups"}),
        ("depth", EstimateMapsRequest, {"task": "depth"}),
        ("normals", EstimateMapsRequest, {"task": "normals"}),
        ("embed", EmbedImagesRequest, {"outputs": ("patches", "cls1")}),
        ("embed", EmbedImagesRequest, {"outputs": ("cls1", "depth", "normals")}),
    ],
)
async def test_an_answer_is_no_larger_than_expected(
    serving: Serving, encode_image: Encode, encoding: Any, path: str, request_type: Any, fields: Any
) -> None:
    if path == "embed" and encoding == "png":
        pytest.skip("embeddings have no PNG")
    if "include_scores" in fields and encoding == "png":
        pytest.skip("a PNG has no scores")
    has_instances = "include_instances" in fields
    if has_instances and encoding in {"png", "bytes"}:
        pytest.skip("JSON alone has instances")
    image = encode_image(size=SIZE)
    params = {k: v for k, v in fields.items() if k != "task"} | MEDIA[encoding]
    headers = {"accept": params.pop("accept"), "content-type": "image/png"}
    if "classes" in params:
        params["classes"] = "dog,sky"
    async with serving() as server:
        async with httpx.AsyncClient(timeout=20) as client:
            url = f"http://127.0.0.1:{server.ports['http']}/v1/images:{path}"
            answer = await client.post(url, content=image, headers=headers, params=params)
        assert answer.status_code == 200, answer.text
    request = request_type(images=(image,), **fields)
    size = answer_size(request, encoding, [SIZE[::-1]], [4], embed_dim=DIM)
    assert len(answer.content) <= size.num_sent + 2000
    if encoding in {"bytes", "base64"} and not has_instances:
        assert len(answer.content) > 0.9 * size.num_sent


@pytest.mark.parametrize(
    ("limits", "accept", "is_served"),
    [
        ({}, "application/json", True),
        ({"max_answer_bytes": 100_000}, "application/json", False),
        ({"max_answer_bytes": 100_000}, "application/octet-stream", True),
        ({"max_work_memory_bytes": 100_000}, "application/octet-stream", False),
    ],
)
async def test_an_answer_over_a_limit_is_refused_before_any_work(
    serving: Serving,
    encode_image: Encode,
    runtime: Any,
    limits: dict[str, int],
    accept: str,
    is_served: bool,
) -> None:
    headers = {"accept": accept, "content-type": "image/png"}
    async with serving(**limits) as server, httpx.AsyncClient(timeout=20) as client:
        before = runtime.num_images
        url = f"http://127.0.0.1:{server.ports['http']}/v1/images:segment"
        params = {"classes": "dog", "include_scores": "true"}
        image = encode_image(size=SIZE)
        answer = await client.post(url, content=image, headers=headers, params=params)
        assert (answer.status_code == 200) is is_served
        assert (runtime.num_images > before) is is_served
        if not is_served:
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "answer_too_large"
        await until(lambda: server.admission.num_work_bytes == 0)


def large_png() -> bytes:
    stream = io.BytesIO()
    Image.new("1", (6324, 6324)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("features", "application/json"),
        ("features", "application/x-npy"),
        ("features", "image/png"),
        ("segment?classes=dog&include_scores=true", "application/octet-stream"),
        ("segment?classes=dog&include_scores=true", "application/json"),
    ],
)
async def test_five_kilobytes_do_not_make_an_answer_of_hundreds_of_megabytes(
    serving: Serving, path: str, accept: str
) -> None:
    image = large_png()
    assert len(image) < 8000
    async with serving() as server, httpx.AsyncClient(timeout=60) as client:
        url = f"http://127.0.0.1:{server.ports['http']}/v1/images:{path}"
        headers = {"accept": accept, "content-type": "image/png"}
        answer = await client.post(url, content=image, headers=headers)
    assert answer.status_code == 413
    error = json.loads(answer.content)["error"]
    assert error["code"] == "answer_too_large"
    assert "size model" in error["message"]


def test_the_largest_answers_are_bounded_for_any_number_of_images() -> None:
    request = SegmentImagesRequest(images=(b"",) * 32, classes=(DOG,))
    sizes_hw = [(6324, 6324)] * 32
    size = answer_size(request, "bytes", sizes_hw, [1024] * 32, embed_dim=768)
    assert size.num_sent == 32 * 2 * 6324**2
    with pytest.raises(RequestTooLarge):
        check_answer_size(size, 10**8, 10**8)


def test_every_form_has_a_size() -> None:
    made: Callable[..., Any] = EmbedImagesRequest
    request = made(images=(b"",), outputs=("patches",), vector_type="int8")
    sent = {
        encoding: answer_size(request, encoding, [(448, 448)], [1024], embed_dim=100).num_sent
        for encoding in ("bytes", "list", "base64", "protobuf")
    }
    assert sent["bytes"] == sent["protobuf"] == 102_400
    assert sent["bytes"] < sent["base64"] < sent["list"]
    assert np.isfinite(list(sent.values())).all()
