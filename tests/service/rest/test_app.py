"""The REST application: every route, errors, and the OpenAPI document."""

import base64
import json
import re
from collections import Counter
from typing import Any

import httpx
import pytest

from service.monitoring.metrics import release
from service.rest.routes import NATIVE
from tests.service.conftest import Encode, Serving
from tests.service.rest.conftest import client_of

KEY = "the-key-of-this-test"
SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}]
STATUSES = set(["200", "401", "403", "404", "406", "413", "415", "422", "429", "500", "503", "504"])


async def document_of(client: httpx.AsyncClient) -> Any:
    return (await client.get("/openapi.json")).json()


def in_query(value: Any) -> str:
    """An option as a query or a form has it."""
    return ",".join(value) if isinstance(value, list) else str(value).lower()


ASKED: list[tuple[str, dict[str, Any], str]] = [
    ("embed", {"outputs": ["patches", "cls2"], "fit": "aspect", "resolution": 42}, "patches cls2"),
    ("embed", {"dtype": "int8", "partial": True}, "cls1 scales"),
    (
        "segment",
        {"classes": ["dog", "sky"], "mode": "slide", "format": "polygons"},
        "height width classes background_share",
    ),
    ("classify", {"classes": ["dog", "sky"], "top_k": 1}, "classes"),
    ("features", {"kind": "groups", "group_count": 3}, "height width groups features"),
    ("depth", {"fit": "aspect", "resolution": 56, "size": "model"}, "height width depth"),
    ("normals", {"size": "model"}, "height width normals"),
]


async def test_a_raw_image_a_form_and_json_give_the_same_answer(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    image, jpeg = encode_image("JPEG"), {"Content-Type": "image/jpeg"}
    for kind, options, fields in ASKED:
        url, query = f"/v1/images:{kind}", {n: in_query(v) for n, v in options.items()}
        answers = [
            await client.post(url, params=query, content=image, headers=jpeg),
            await client.post(url, data=query, files={"image": ("a.jpg", image)}),
            await client.post(url, json=options | {"image": base64.b64encode(image).decode()}),
        ]
        assert [a.status_code for a in answers] == [200, 200, 200], answers[0].text
        assert answers[0].json() == answers[1].json() == answers[2].json()
        (item,) = answers[0].json()["data"]
        assert item.keys() == {"index", *fields.split()}


async def test_every_native_route_lists_its_media_types_if_none_is_accepted(
    client: httpx.AsyncClient,
) -> None:
    paths = (await document_of(client))["paths"]
    native = [path for path in paths if path.startswith("/v1/") and path != "/v1/embeddings"]
    assert len(native) == 9
    for path in native:
        ((method, operation),) = paths[path].items()
        answer = await client.request(
            method, path.format(model_id="fake"), json={}, headers={"Accept": "video/mp4"}
        )
        assert answer.status_code == 406, path
        assert answer.json()["error"]["code"] == "not_acceptable"
        for media in operation["responses"]["200"]["content"]:
            assert media in answer.json()["error"]["message"], path


async def test_paths_and_methods(client: httpx.AsyncClient) -> None:
    """Unknown ones have the error body, a trailing slash is ignored, HEAD has no body."""
    unknown = await client.get("/v1/models//")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "route_not_found")
    wrong = await client.put("/v1/models")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET"
    for path in ("/v1/models", "/v1/models/fake", "/v2", "/docs"):
        assert (await client.get(path + "/")).content == (await client.get(path)).content
    inferred = await client.post("/v2/models/fake/infer/", json={})
    assert (inferred.status_code, inferred.json()["param"]) == (422, "inputs")
    for path in ("/", "/docs", "/v1/models", "/v2/health/ready", "/openapi.json", "/v1/nothing"):
        got, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-length"] == got.headers["content-length"]
    ignored = await client.post("/v1/texts:embed?dtype=int8", json={"texts": ["a"]})
    assert (ignored.status_code, ignored.json()["error"]["param"]) == (422, "dtype")
    version = (await client.get("/version")).json()
    assert version == {"version": (await client.get("/v2")).json()["version"]}
    refused = await client.head("/v1/embeddings")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


async def test_the_document_is_complete(client: httpx.AsyncClient) -> None:
    document = await document_of(client)
    assert document["info"]["version"] == release()
    assert document["servers"] == [{"url": "."}]
    for path in NATIVE:
        has_head = path.endswith(("depth", "normals"))
        statuses = set(document["paths"][path]["post"]["responses"])
        assert statuses == STATUSES | ({"501"} if has_head else set())
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])
    operations = [op for methods in document["paths"].values() for op in methods.values()]
    methods = Counter(operation["operationId"] for operation in operations)
    assert set(methods.values()) == {1}
    assert {"embed_images", "list_models", "create_embeddings", "load_model"} <= methods.keys()


@pytest.mark.parametrize(("keys", "security"), [(None, [{}, *SECURITY]), (KEY, SECURITY)])
async def test_the_document_says_where_an_api_key_is_needed(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, keys: str | None, security: Any
) -> None:
    monkeypatch.setattr("service.rest.middleware.WRONG_KEY_DELAY_S", 0.0)
    names = {"model": "fake", "model_id": "fake", "name": "fake", "version": "1"}
    async with serving(api_keys=keys) as server, client_of(server) as client:
        document = await document_of(client)
        assert document["security"] == security
        assert document["components"]["securitySchemes"].keys() == {"bearer", "apiKey"}
        for path, methods in document["paths"].items():
            ((method, operation),) = methods.items()
            is_open = operation.get("security") == []
            answer = await client.request(method, path.format(**names))
            assert (answer.status_code == 401) == (keys is not None and not is_open), path


async def test_the_documents_examples_work(client: httpx.AsyncClient) -> None:
    paths = (await document_of(client))["paths"]
    assert {path for path in paths if ":" in path} == NATIVE.keys()
    for path in (*NATIVE, "/v1/embeddings", "/invocations"):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]
        answer = await client.post(path, json=body["example"])
        assert answer.status_code == 200, (path, answer.text)
        assert answer.json().get("data") or answer.json()["predictions"]
        assert ("errors" in answer.json()) == body["example"].get("partial", False)
