"""The REST application: every route, errors, and the OpenAPI document."""

import base64
import json
import re
from collections import Counter
from typing import Any

import httpx
import pytest

from model.graphs import DENSE_TASKS
from service.messages import IMAGE_OUTPUTS
from service.monitoring.metrics import release
from service.rest.openapi import EXAMPLES
from tests.service.conftest import Encode, Serving
from tests.service.rest.conftest import client_of

ENUM = {"type": "string"}
SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}]

STATUSES = {
    "200",
    "401",
    "403",
    "404",
    "406",
    "413",
    "415",
    "422",
    "429",
    "500",
    "503",
    "504",
}


@pytest.fixture
def limits() -> dict[str, Any]:
    return {"max_request_bytes": 20_000, "max_image_bytes": 10_000}


def in_query(value: Any) -> str:
    """An option as a query or a form has it."""
    return ",".join(value) if isinstance(value, list) else str(value).lower()


ASKED: list[tuple[str, dict[str, Any], set[str]]] = [
    (
        "embed",
        {"outputs": ["patches", "cls2"], "normalize": False, "fit": "aspect", "resolution": 42},
        {"patches", "cls2"},
    ),
    ("embed", {"dtype": "int8", "partial": True}, {"cls1", "scales"}),
    (
        "segment",
        {"classes": ["dog", "sky"], "mode": "slide", "format": "polygons"},
        {"height", "width", "classes", "background_share"},
    ),
    ("classify", {"classes": ["dog", "sky"], "top_k": 1}, {"classes"}),
    (
        "features",
        {"kind": "groups", "group_count": 3, "size": "model"},
        {"height", "width", "groups", "features"},
    ),
    ("depth", {"fit": "aspect", "resolution": 56, "size": "model"}, {"height", "width", "depth"}),
    ("normals", {"size": "model"}, {"height", "width", "normals"}),
]


async def test_a_raw_image_a_form_and_json_give_the_same_answer(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    image, jpeg = encode_image("JPEG"), {"Content-Type": "image/jpeg"}
    encoded = {"image": base64.b64encode(image).decode()}
    for kind, options, fields in ASKED:
        url, query = f"/v1/images:{kind}", {n: in_query(v) for n, v in options.items()}
        answers = [
            await client.post(url, params=query, content=image, headers=jpeg),
            await client.post(url, data=query, files={"image": ("a.jpg", image)}),
            await client.post(url, json=options | encoded),
        ]
        assert [a.status_code for a in answers] == [200, 200, 200], answers[0].text
        assert answers[0].json() == answers[1].json() == answers[2].json()
        (item,) = answers[0].json()["data"]
        assert item.keys() == {"index", *fields}
        if options.get("resolution") == 42 and kind == "depth":
            assert (item["height"], item["width"]) == (24, 24)


async def test_every_native_route_lists_its_media_types_if_none_is_accepted(
    client: httpx.AsyncClient,
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


async def test_unknown_paths_and_methods_have_the_error_body(client: httpx.AsyncClient) -> None:
    wrong = await client.put("/v1/models")
    for answer in (
        await client.get("/v1/nothing"),
        await client.get("/v1/models//"),
        await client.post("/v1/nothing/", json={}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET"


async def test_a_trailing_slash_is_the_same_path(client: httpx.AsyncClient) -> None:
    for path in ("/v1/models", "/v1/models/fake", "/v2", "/v2/health/live", "/docs"):
        assert (await client.get(path + "/")).content == (await client.get(path)).content
    embedded = await client.post("/v1/embeddings/", json={"input": "dog"})
    assert embedded.status_code == 200
    inferred = await client.post("/v2/models/fake/infer/", json={})
    assert (inferred.status_code, inferred.json()["param"]) == (422, "inputs")


async def test_head_is_get_without_the_body(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs", "/v1/models", "/v2/health/ready", "/openapi.json", "/v1/nothing"):
        got, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-length"] == got.headers["content-length"]
    refused = await client.head("/v1/embeddings")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


async def test_health_and_version_have_the_paths_of_other_servers(serving: Serving) -> None:
    async with serving(api_keys="the-key-of-this-test") as server, client_of(server) as client:
        for path in ("/health", "/healthz", "/health/"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()) == (200, {"ready": True})
            assert (await client.head(path)).status_code == 200
        assert (await client.get("/version")).status_code == 401
        key = {"Authorization": "Bearer the-key-of-this-test"}
        version = (await client.get("/version", headers=key)).json()
        assert version == {"version": (await client.get("/v2", headers=key)).json()["version"]}
        server.admission.drain()
        assert (await client.get("/health")).status_code == 503


async def test_the_document_has_every_status_and_every_reference_resolves(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    for path in EXAMPLES:
        operation = document["paths"][path]["post"]
        has_head = path.endswith(("depth", "normals"))
        assert set(operation["responses"]) == STATUSES | ({"501"} if has_head else set())
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])
    segment = document["paths"]["/v1/images:segment"]["post"]
    assert {"classes", "format", "resolution"} <= {p["name"] for p in segment["parameters"]}


async def test_a_query_and_a_form_have_the_enums_of_the_options(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    names = [*IMAGE_OUTPUTS, *DENSE_TASKS]
    outputs = {"type": "array", "items": {"type": "string", "enum": names}}
    expected = {
        "/v1/images:embed": {"outputs": outputs, "fit": ENUM | {"enum": ["squash", "aspect"]}},
        "/v1/images:segment": {
            "classes": {"type": "array", "items": ENUM},
            "features": ENUM | {"enum": ["values", "patches"]},
            "background_threshold": {"type": "number"},
        },
    }
    for path, options in expected.items():
        operation = document["paths"][path]["post"]
        query = {p["name"]: p["schema"] for p in operation["parameters"] if p["in"] == "query"}
        form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
        assert form.keys() == {"image", "images", *query}
        assert form["image"]["format"] == form["images"]["items"]["format"] == "binary"
        for name, schema in options.items():
            assert query[name] == {k: v for k, v in form[name].items() if k != "description"}
            assert query[name] == schema


async def test_the_document_names_its_version_its_server_and_its_methods(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["info"]["version"] == release()
    assert document["servers"] == [{"url": "."}]
    operations = [op for methods in document["paths"].values() for op in methods.values()]
    names = Counter(operation["operationId"] for operation in operations)
    assert set(names.values()) == {1}
    assert {"embed_images", "list_models", "create_embeddings", "load_model"} <= names.keys()


async def test_the_document_says_where_an_api_key_is_needed(serving: Serving) -> None:
    names = {"model": "fake", "model_id": "fake", "name": "fake", "version": "1"}
    for keys, expected in ((None, [{}, *SECURITY]), ("the-key-of-this-test", SECURITY)):
        async with serving(api_keys=keys) as server, client_of(server) as client:
            document = (await client.get("/openapi.json")).json()
            assert document["security"] == expected
            assert document["components"]["securitySchemes"].keys() == {"bearer", "apiKey"}
            for path, methods in document["paths"].items():
                ((method, operation),) = methods.items()
                is_open = operation.get("security") == []
                answer = await client.request(method, path.format(**names))
                assert (answer.status_code == 401) == (keys is not None and not is_open), path


async def test_the_examples_of_every_native_route_work(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    ours = {path: methods["post"] for path, methods in document["paths"].items() if ":" in path}
    assert ours.keys() == EXAMPLES.keys()
    for path, operation in ours.items():
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        shown = operation["responses"]["200"]["content"]["application/json"].get("example")
        for name, example in examples.items():
            answer = await client.post(path, json=example["value"])
            assert answer.status_code == 200, (path, name, answer.text)
            assert answer.json()["data"], (path, name)
            assert ("errors" in answer.json()) == example["value"].get("partial", False)
            if shown is not None:
                assert answer.json()["data"][0].keys() == shown["data"][0].keys()
