"""The REST application over the fake runtime: routes, errors, documents."""

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from service.rest.openapi import EXAMPLES
from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
STATUSES = {"200", "401", "404", "406", "408", "413", "415", "422", "429", "500", "503", "504"}


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(max_request_bytes=20_000, max_image_bytes=10_000) as server:
        url = f"http://127.0.0.1:{server.ports['http']}"
        async with httpx.AsyncClient(base_url=url, timeout=20) as made:
            yield made


async def test_raw_multipart_and_json_give_the_same_answer(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    image = encode_image("JPEG")
    encoded = base64.b64encode(image).decode()
    query = {"outputs": "patches,cls2", "normalize": "false", "fit": "aspect", "resolution": "42"}
    body: dict[str, Any] = {"image": encoded, "outputs": ["patches", "cls2"], "normalize": False}
    body |= {"fit": "aspect", "resolution": 42}
    answers = [
        await client.post(
            "/v1/images:embed",
            params=query,
            content=image,
            headers={"Content-Type": "image/jpeg"},
        ),
        await client.post("/v1/images:embed", data=query, files={"image": ("a.jpg", image)}),
        await client.post("/v1/images:embed", json=body),
    ]
    assert [a.status_code for a in answers] == [200, 200, 200]
    assert answers[0].json() == answers[1].json() == answers[2].json()
    assert answers[0].json()["data"][0].keys() == {"index", "patches", "cls2"}


@pytest.mark.parametrize("task", ["depth", "normals"])
async def test_raw_multipart_and_json_give_the_same_map(
    client: httpx.AsyncClient, encode_image: Encode, task: str
) -> None:
    image = encode_image("JPEG")
    encoded = base64.b64encode(image).decode()
    query = {"fit": "squash", "resolution": "42", "size": "model"}
    body: dict[str, Any] = {"images": [encoded], "fit": "squash", "resolution": 42, "size": "model"}
    url, jpeg = f"/v1/images:{task}", {"Content-Type": "image/jpeg"}
    answers = [
        await client.post(url, params=query, content=image, headers=jpeg),
        await client.post(url, data=query, files={"image": ("a.jpg", image)}),
        await client.post(url, json=body),
    ]
    assert [a.status_code for a in answers] == [200, 200, 200]
    assert answers[0].json() == answers[1].json() == answers[2].json()
    (item,) = answers[0].json()["data"]
    assert item.keys() == {"index", "height", "width", task}
    assert (item["height"], item["width"]) == (24, 24)


@pytest.mark.parametrize(
    ("kind", "query", "body"),
    [
        ("classify", {"classes": "dog,sky", "top_k": "1"}, {"classes": ["dog", "sky"], "top_k": 1}),
        (
            "features",
            {"kind": "groups", "group_count": "3", "size": "model"},
            {"kind": "groups", "group_count": 3, "size": "model"},
        ),
        (
            "segment",
            {"classes": "dog,sky", "mode": "slide", "format": "polygons"},
            {"classes": ["dog", "sky"], "mode": "slide", "format": "polygons"},
        ),
        ("embed", {"dtype": "int8", "partial": "true"}, {"dtype": "int8", "partial": True}),
    ],
)
async def test_raw_multipart_and_json_give_the_same_of_every_route(
    client: httpx.AsyncClient,
    encode_image: Encode,
    kind: str,
    query: dict[str, str],
    body: dict[str, Any],
) -> None:
    image = encode_image("JPEG")
    encoded = {"image": base64.b64encode(image).decode()}
    url, jpeg = f"/v1/images:{kind}", {"Content-Type": "image/jpeg"}
    answers = [
        await client.post(url, params=query, content=image, headers=jpeg),
        await client.post(url, data=query, files={"image": ("a.jpg", image)}),
        await client.post(url, json=body | encoded),
    ]
    assert [a.status_code for a in answers] == [200, 200, 200], answers[0].text
    assert answers[0].json() == answers[1].json() == answers[2].json()
    assert len(answers[0].json()["data"]) == 1


async def test_every_route_of_ours_says_what_it_offers_where_nothing_is_accepted(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    document = (await client.get("/openapi.json")).json()
    asked = 0
    for path, methods in document["paths"].items():
        if not path.startswith("/v1/") or path == "/v1/embeddings":
            continue
        ((method, operation),) = methods.items()
        answer = await client.request(
            method, path.format(model_id="fake"), json={}, headers={"Accept": "video/mp4"}
        )
        assert answer.status_code == 406, path
        assert answer.json()["error"]["code"] == "not_acceptable"
        for media in operation["responses"]["200"]["content"]:
            assert media in answer.json()["error"]["message"], path
        asked += 1
    assert asked == 9


async def test_some_broken_images_leave_the_others_their_answers(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    images = [("images", ("a", encode_image())), ("images", ("b", b"no image"))]
    query = {"partial": "true", "classes": "dog,sky"}
    answer = await client.post("/v1/images:classify", data=query, files=images)
    assert answer.status_code == 200
    assert [item["index"] for item in answer.json()["data"]] == [0]
    (error,) = answer.json()["errors"]
    assert (error["index"], error["error"]["param"]) == (1, "images[1]")
    del query["partial"]
    answer = await client.post("/v1/images:classify", data=query, files=images)
    assert answer.json()["error"] == error["error"]
    query["partial"] = "true"
    npy = {"Accept": "application/x-npy"}
    answer = await client.post("/v1/images:classify", data=query, files=images, headers=npy)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "partial")


async def test_views_are_png_files_of_the_images_size(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    headers = {"Content-Type": "image/png", "Accept": "image/png"}
    modes = {"features": "RGB", "features?kind=component": "P", "features?kind=groups": "P"}
    modes |= {"segment?classes=a,b&mode=slide": "P"}
    modes |= {"segment?classes=a,b&mode=slide&format=overlay": "RGB"}
    for url, mode in modes.items():
        answer = await client.post(
            f"/v1/images:{url}", content=encode_image(size=(40, 30)), headers=headers
        )
        assert answer.headers["content-type"] == "image/png", answer.text
        image = Image.open(io.BytesIO(answer.content))
        assert (image.size, image.mode) == ((40, 30), mode)


async def test_depth_is_a_png_of_the_images_size(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    headers = {"Content-Type": "image/png", "Accept": "image/png"}
    for url, mode in (("depth", "I;16"), ("depth?format=colors", "P"), ("normals", "RGB")):
        answer = await client.post(
            f"/v1/images:{url}", content=encode_image(size=(40, 30)), headers=headers
        )
        assert answer.headers["content-type"] == "image/png"
        image = Image.open(io.BytesIO(answer.content))
        assert (image.size, image.mode) == ((40, 30), mode)


async def test_a_missing_head_is_501_and_the_models_do_not_claim_it(
    serving: Serving, encode_image: Encode, runtime: "FakeRuntime"
) -> None:
    runtime.tasks = ("normals",)
    async with serving() as server, httpx.AsyncClient(timeout=20) as client:
        url = f"http://127.0.0.1:{server.ports['http']}/v1"
        png = {"Content-Type": "image/png"}
        answers = [
            await client.post(f"{url}/images:{task}", content=encode_image(), headers=png)
            for task in ("depth", "normals")
        ]
        (card,) = (await client.get(f"{url}/models")).json()["data"]
    assert [a.status_code for a in answers] == [501, 200]
    error = answers[0].json()["error"]
    assert error | {"message": ""} == {
        "message": "",
        "type": "not_supported",
        "code": "not_supported",
        "param": "model",
    }
    assert "depth" not in card["outputs"]
    assert "normals" in card["outputs"]


@pytest.mark.parametrize(
    ("request_", "status", "code", "param"),
    [
        ({"content": b"x"}, 415, "unsupported_media_type", "Content-Type"),
        ({"json": {}}, 422, "invalid_field", "images"),
        ({"json": {"images": []}}, 422, "empty_list", "images"),
        ({"json": {"image": "", "outputs": ["x"]}}, 422, "unknown_output", "outputs[0]"),
        ({"json": {"image": ""}, "params": {"fit": "squash"}}, 422, "unknown_field", "fit"),
        (
            {"content": b"[", "headers": {"Content-Type": "application/json"}},
            422,
            "invalid_json",
            None,
        ),
        (
            {"content": b"x" * 30_000, "headers": {"Content-Type": "image/png"}},
            413,
            "request_too_large",
            None,
        ),
        (
            {"content": b"x" * 15_000, "headers": {"Content-Type": "image/png"}},
            422,
            "image_too_large",
            "images[0]",
        ),
        ({"json": {"image": ""}, "headers": {"Accept": "text/html"}}, 406, "not_acceptable", None),
        (
            {"json": {"image": ""}, "headers": {"X-Request-Timeout-Ms": "9" * 5000}},
            422,
            "invalid_field",
            "X-Request-Timeout-Ms",
        ),
        (
            {"json": {"image": ""}, "headers": {"X-Request-Timeout-Ms": "0"}},
            422,
            "invalid_field",
            "X-Request-Timeout-Ms",
        ),
        (
            {"json": {"image": ""}, "headers": {"X-Request-Timeout-Ms": b"\xb2"}},
            422,
            "invalid_field",
            "X-Request-Timeout-Ms",
        ),
    ],
)
async def test_errors_have_one_body(
    client: httpx.AsyncClient, request_: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    answer = await client.post("/v1/images:embed", **request_)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error.keys() == {"message", "type", "code", "param"}
    assert answer.headers["x-request-id"]


async def test_a_body_without_a_length_is_counted_as_it_comes(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000
            await asyncio.sleep(0)

    headers = {"Content-Type": "image/png"}
    answer = await client.post("/v1/images:embed", content=chunks(), headers=headers)
    assert answer.status_code == 413


async def test_unknown_routes_and_methods_answer_in_the_same_body(
    client: httpx.AsyncClient,
) -> None:
    lost = await client.get("/v1/nothing")
    wrong = await client.put("/v1/models")
    slashed = [await client.get("/v1/models/"), await client.post("/v1/embeddings/", json={})]
    for answer in (lost, *slashed):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET"


async def test_models_are_listed_and_found(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert [card["id"] for card in listed["data"]] == ["fake"]
    assert (await client.get("/v1/models/fake")).json() == listed["data"][0]
    missing = await client.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_given_request_id_comes_back_and_a_bad_one_does_not(
    client: httpx.AsyncClient,
) -> None:
    kept = await client.get("/v2/health/live", headers={"X-Request-Id": "abc-1"})
    replaced = await client.get("/v2/health/live", headers={"X-Request-Id": "x" * 200})
    assert kept.headers["x-request-id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{32}", replaced.headers["x-request-id"])


async def test_the_document_names_every_status_and_every_reference_resolves(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    ours = ("segment", "embed", "classify", "features")
    for path in ("/v1/texts:embed", *(f"/v1/images:{kind}" for kind in ours)):
        operation = document["paths"][path]["post"]
        assert set(operation["responses"]) == STATUSES
        assert operation["requestBody"]["content"]
    for path in ("/v1/images:depth", "/v1/images:normals"):
        operation = document["paths"][path]["post"]
        assert set(operation["responses"]) == {*STATUSES, "501"}
        assert "image/png" in operation["responses"]["200"]["content"]
        body = operation["requestBody"]["content"]["application/json"]
        (sent,) = body["examples"].values()
        answer = await client.post(path, json=sent["value"])
        assert answer.status_code == 200
        example = operation["responses"]["200"]["content"]["application/json"]["example"]
        assert answer.json()["data"][0].keys() == example["data"][0].keys()
        assert ("format" in {p["name"] for p in operation["parameters"]}) == path.endswith("depth")
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])
    segment = document["paths"]["/v1/images:segment"]["post"]
    assert "image/png" in segment["responses"]["200"]["content"]
    assert {"classes", "format", "resolution"} <= {p["name"] for p in segment["parameters"]}


async def test_every_route_of_ours_has_examples_and_each_is_answered(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    ours = {path: methods["post"] for path, methods in document["paths"].items() if ":" in path}
    assert ours.keys() == EXAMPLES.keys()
    for path, operation in ours.items():
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        for name, example in examples.items():
            answer = await client.post(path, json=example["value"])
            assert answer.status_code == 200, (path, name, answer.text)
            assert answer.json()["data"], (path, name)
            assert ("errors" in answer.json()) == example["value"].get("partial", False)


async def test_the_page_shows_every_route_and_asks_nobody(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    for path in (await client.get("/openapi.json")).json()["paths"]:
        assert path in page
    assert "://" not in page
