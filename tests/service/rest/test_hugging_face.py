"""Hugging Face's format: vectors of texts, classes of an image, and errors in its field names."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.conftest import Encode, Serving
from tests.service.rest.conftest import client_of

BOTH = pytest.mark.parametrize("path", ["/", "/embed"])


async def embed(client: httpx.AsyncClient, **body: Any) -> Any:
    answer = await client.post("/v1/embeddings", json=body)
    return np.array([item["embedding"] for item in answer.json()["data"]])


@BOTH
async def test_texts_have_the_vectors_of_the_other_routes(
    client: httpx.AsyncClient, path: str
) -> None:
    long = "z" * 3000 + "dog " * 20
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"inputs": "dog"}, {"input": "dog"}),
        ({"inputs": ["dog", "cat"], "truncate": None}, {"input": ["dog", "cat"]}),
        ({"inputs": "dog", "dimensions": 3, "prompt_name": "x"}, {"input": "dog", "dimensions": 3}),
        ({"inputs": long, "truncate": True}, {"input": long[:64]}),
        (
            {"inputs": long, "truncate": True, "truncation_direction": "Left"},
            {"input": long[-64:]},
        ),
    ]
    for body, same in cases:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        np.testing.assert_array_equal(answer.json(), await embed(client, **same))
    raw = np.array((await client.post(path, json={"inputs": "dog", "normalize": False})).json())
    unit = raw / np.linalg.norm(raw)
    np.testing.assert_allclose(unit, await embed(client, input="dog"), rtol=1e-5)
    assert abs(np.linalg.norm(raw) - 1) > 0.01


@BOTH
async def test_an_image_is_classified_by_candidate_labels(
    client: httpx.AsyncClient, encode_image: Encode, path: str
) -> None:
    image = base64.b64encode(encode_image()).decode()
    for template in (None, "a photo of {}."):
        parameters = {"candidate_labels": ["dog", "sky"], "hypothesis_template": template}
        answer = await client.post(path, json={"inputs": image, "parameters": parameters})
        templates = ["This is a photo of {}." if template is None else template]
        body = {"image": image, "classes": ["dog", "sky"], "templates": templates}
        native = (await client.post("/v1/images:classify", json=body)).json()["data"][0]["classes"]
        assert answer.json() == [
            {"label": found["name"], "score": found["probability"]} for found in native
        ]


async def test_errors_name_the_fields_of_the_request(client: httpx.AsyncClient) -> None:
    labels = {"candidate_labels": ["dog"]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": " "}, "inputs"),
        ({"inputs": ["dog", " "]}, "inputs[1]"),
        ({"inputs": ["dog", 3]}, "inputs[1]"),
        ({"inputs": "dog " * 65, "truncate": False}, "inputs"),
        ({"inputs": "dog", "colour": "red"}, "colour"),
        ({"inputs": ["dog"], "parameters": labels}, "inputs"),
        ({"inputs": "eA==", "parameters": labels}, "inputs"),
        ({"inputs": "?", "parameters": labels}, "inputs"),
        ({"inputs": "x", "parameters": {"other": 1}}, "parameters.other"),
    ]
    for body, param in cases:
        answer = await client.post("/embed", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), answer.text
    blank = {"inputs": "eA==", "parameters": {"candidate_labels": ["dog", " "]}}
    error = (await client.post("/", json=blank)).json()["error"]
    assert error["param"].startswith("parameters.candidate_labels[1]")


async def test_the_path_of_the_page_needs_a_key_for_requests(serving: Serving) -> None:
    async with serving(api_keys="the-key-of-this-test") as server, client_of(server) as client:
        assert (await client.get("/")).status_code == 200
        for path in ("/", "/embed"):
            assert (await client.post(path, json={"inputs": "dog"})).status_code == 401
