"""The size of answers is known before the work."""

from typing import Any

import httpx
import pytest

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
DOG, CAT = SegmentClass(name="dog"), SegmentClass(name="cat")
MEDIA = {
    "bytes": {"accept": "application/octet-stream"},
    "png": {"accept": "image/png"},
    "list": {"accept": "application/json"},
    "base64": {"accept": "application/json", "encoding": "base64"},
}
ALL, JSON, ARRAYS = tuple(MEDIA), ("list", "base64"), ("bytes", "list", "base64")


@pytest.mark.parametrize(
    ("path", "request_type", "fields", "encodings"),
    [
        ("segment", SegmentImagesRequest, {"classes": (DOG,), "include_scores": True}, ARRAYS),
        (
            "segment",
            SegmentImagesRequest,
            {"classes": (DOG, CAT), "include_all_scores": True},
            ARRAYS,
        ),
        ("segment", SegmentImagesRequest, {"classes": (DOG,), "include_instances": True}, JSON),
        ("features", VisualizeFeaturesRequest, {"kind": "colors"}, ALL),
        ("features", VisualizeFeaturesRequest, {"kind": "component"}, ALL),
        ("features", VisualizeFeaturesRequest, {"kind": "groups"}, ALL),
        ("depth", EstimateMapsRequest, {"task": "depth"}, ALL),
        ("normals", EstimateMapsRequest, {"task": "normals"}, ALL),
        ("embed", EmbedImagesRequest, {"outputs": ("patches", "cls1")}, ARRAYS),
        ("embed", EmbedImagesRequest, {"outputs": ("cls1", "depth", "normals")}, ARRAYS),
    ],
)
async def test_an_answer_is_no_larger_than_expected(
    serving: Serving,
    encode_image: Encode,
    path: str,
    request_type: Any,
    fields: Any,
    encodings: Any,
) -> None:
    image = encode_image(size=SIZE)
    asked = {k: v for k, v in fields.items() if k not in {"task", "include_all_scores"}}
    if "classes" in asked:
        asked["classes"] = ",".join(c.name for c in fields["classes"])
    if "include_all_scores" in fields:
        asked["include_scores"] = "all"
    async with serving() as server, httpx.AsyncClient(timeout=20) as client:
        url = f"http://127.0.0.1:{server.ports['http']}/v1/images:{path}"
        for encoding in encodings:
            params = asked | MEDIA[encoding]
            headers = {"accept": params.pop("accept"), "content-type": "image/png"}
            answer = await client.post(url, content=image, headers=headers, params=params)
            assert answer.status_code == 200, answer.text
            request = request_type(images=(image,), **fields)
            size = answer_size(request, encoding, [SIZE[::-1]], [4], embed_dim=DIM)
            assert len(answer.content) <= size.num_sent + 2000
            if encoding in {"bytes", "base64"} and "include_instances" not in fields:
                assert len(answer.content) > 0.9 * size.num_sent


@pytest.mark.parametrize(
    ("limits", "accept", "is_served"),
    [
        ({}, "application/json", True),
        ({"max_work_memory_bytes": 125_000}, "application/json", False),
        ({"max_work_memory_bytes": 125_000}, "application/octet-stream", True),
        ({"max_work_memory_bytes": 50_000}, "application/octet-stream", False),
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
        assert answer.status_code == (200 if is_served else 413)
        assert (runtime.num_images > before) is is_served
        if not is_served:
            assert answer.json()["error"]["code"] == "answer_too_large"
        await until(lambda: server.admission.num_work_bytes == 0)


def test_the_largest_answers_are_bounded_for_any_number_of_images() -> None:
    request = SegmentImagesRequest(images=(b"",) * 32, classes=(DOG,))
    size = answer_size(request, "bytes", [(6324, 6324)] * 32, [1024] * 32, embed_dim=768)
    assert size.num_sent == 32 * 2 * 6324**2
    with pytest.raises(RequestTooLarge):
        check_answer_size(size, 10**8, 10**8)
