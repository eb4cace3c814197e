"""The REST application: every route, errors, and the OpenAPI document."""

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from PIL import Image

from service.rest.openapi import EXAMPLES
from tests.service.conftest import Encode, FakeRuntime, Serving

STATUSES = {"200", "401", "404", "406", "408", "413", "415", "422", "429", "500", "503", "504"}


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(max_request_bytes=20_000, max_image_bytes=10_000) as server:
        url = f"http://127.0.0.1:{server.ports['http']}"
        async with httpx.AsyncClient(base_url=url, timeout=20) as made:
            yield made


@pytest.mark.parametrize(
    ("kind", "query", "options", "fields"),
    [
        (
            "embed",
            {"outputs": "patches,cls2", "normalize": "false", "fit": "aspect", "resolution": "42"},
            {"outputs": ["patches", "cls2"], "normalize": False, "fit": "aspect", "resolution": 42},
            {"patches", "cls2"},
        ),
        (
            "embed",
            {"dtype": "int8", "partial": "true"},
            {"dtype": "int8", "partial": True},
            {"cls1", "scales"},
        ),
        (
            "segment",
            {"classes": "dog,sky", "mode": "slide", "format": "polygons"},
            {"classes": ["dog", "sky"], "mode": "slide", "format": "polygons"},
            {"height", "width", "classes", "background_share"},
        ),
        (
            "classify",
            {"classes": "dog,sky", "top_k": "1"},
            {"classes": ["dog", "sky"], "top_k": 1},
            {"classes"},
        ),
        (
            "features",
            {"kind": "groups", "group_count": "3", "size": "model"},
            {"kind": "groups", "group_count": 3, "size": "model"},
            {"height", "width", "groups", "features"},
        ),
        *[
            (
                task,
                {"fit": "squash", "resolution": "42", "size": "model"},
                {"fit": "squash", "resolution": 42, "size": "model"},
                {"height", "width", task},
            )
            for task in ("depth", "normals")
        ],
    ],
)
async def test_a_raw_image_a_form_and_json_give_the_same_answer(
    client: httpx.AsyncClient,
    encode_image: Encode,
    kind: str,
    query: dict[str, str],
    options: dict[str, Any],
    fields: set[str],
) -> None:
    image, url = encode_image("JPEG"), f"/v1/images:{kind}"
    jpeg = {"Content-Type": "image/jpeg"}
    encoded = {"image": base64.b64encode(image).decode()}
    answers = [
        await client.post(url, params=query, content=image, headers=jpeg),
        await client.post(url, data=query, files={"image": ("a.jpg", image)}),
        await client.post(url, json=options | encoded),
    ]
    assert [a.status_code for a in answers] == [200, 200, 200], answers[0].text
    assert answers[0].json() == answers[1].json() == answers[2].json()
    (item,) = answers[0].json()["data"]
    assert item.keys() == {"index", *fields}
    if kind in {"depth", "normals"}:
        assert (item["height"], item["width"]) == (24, 24)


async def test_every_native_route_lists_its_media_types_if_none_is_accepted(
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


async def test_a_partial_request_answers_its_valid_images(
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


@pytest.mark.parametrize(
    ("route", "mode"),
    [
        ("features", "RGB"),
        ("features?kind=component", "P"),
        ("features?kind=groups", "P"),
        ("segment?classes=a,b&mode=slide", "P"),
        ("segment?classes=a,b&mode=slide&format=overlay", "RGB"),
        ("depth", "I;16"),
        ("depth?format=colors", "P"),
        ("normals", "RGB"),
    ],
)
async def test_a_png_has_the_size_of_its_image(
    client: httpx.AsyncClient, encode_image: Encode, route: str, mode: str
) -> None:
    headers = {"Content-Type": "image/png", "Accept": "image/png"}
    content = encode_image(size=(40, 30))
    answer = await client.post(f"/v1/images:{route}", content=content, headers=headers)
    assert answer.headers["content-type"] == "image/png", answer.text
    image = Image.open(io.BytesIO(answer.content))
    assert (image.size, image.mode) == ((40, 30), mode)


async def test_a_missing_head_is_501_and_not_in_the_models_outputs(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime
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


@pytest.mark.slow
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
async def test_an_error_names_its_field(
    client: httpx.AsyncClient, request_: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    answer = await client.post("/v1/images:embed", **request_)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error.keys() == {"message", "type", "code", "param"}
    assert answer.headers["x-request-id"]


async def test_a_body_without_a_length_is_limited_too(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000
            await asyncio.sleep(0)

    headers = {"Content-Type": "image/png"}
    answer = await client.post("/v1/images:embed", content=chunks(), headers=headers)
    assert answer.status_code == 413


async def test_unknown_paths_and_methods_have_the_error_body(client: httpx.AsyncClient) -> None:
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


async def test_a_valid_request_id_is_returned_and_an_invalid_one_replaced(
    client: httpx.AsyncClient,
) -> None:
    kept = await client.get("/v2/health/live", headers={"X-Request-Id": "abc-1"})
    replaced = await client.get("/v2/health/live", headers={"X-Request-Id": "x" * 200})
    assert kept.headers["x-request-id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{32}", replaced.headers["x-request-id"])


async def test_the_document_has_every_status_and_every_reference_resolves(
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
        example = operation["responses"]["200"]["content"]["application/json"]["example"]
        assert answer.json()["data"][0].keys() == example["data"][0].keys()
        assert ("format" in {p["name"] for p in operation["parameters"]}) == path.endswith("depth")
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])
    segment = document["paths"]["/v1/images:segment"]["post"]
    assert "image/png" in segment["responses"]["200"]["content"]
    assert {"classes", "format", "resolution"} <= {p["name"] for p in segment["parameters"]}


async def test_the_examples_of_every_native_route_work(client: httpx.AsyncClient) -> None:
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


async def test_the_docs_page_shows_every_route_and_loads_nothing_else(
    client: httpx.AsyncClient,
) -> None:
    page = (await client.get("/docs")).text
    for path in (await client.get("/openapi.json")).json()["paths"]:
        assert path in page
    assert "://" not in page
