"""Hugging Face's format: vectors of texts, classes of an image, and errors in its field names."""

import base64
from typing import Any

import httpx
import numpy as np

from tests.service.conftest import Encode

LONG = "z" * 3000 + "dog " * 20
LABELS = {"candidate_labels": ["dog", "sky"]}


async def test_texts_and_images_have_the_answers_of_the_native_routes(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    async def embed(**body: Any) -> Any:
        answer = await client.post("/v1/embeddings", json=body)
        return np.array([item["embedding"] for item in answer.json()["data"]])

    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"inputs": "dog"}, {"input": "dog"}),
        ({"inputs": ["dog", "cat"], "truncate": None}, {"input": ["dog", "cat"]}),
        ({"inputs": "dog", "dimensions": 3, "prompt_name": "x"}, {"input": "dog", "dimensions": 3}),
        ({"inputs": LONG, "truncate": True}, {"input": LONG[:64]}),
        (
            {"inputs": LONG, "truncate": True, "truncation_direction": "Left"},
            {"input": LONG[-64:]},
        ),
    ]
    for path in ("/", "/embed"):
        for body, same in cases:
            answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            np.testing.assert_array_equal(answer.json(), await embed(**same))
    raw = np.array((await client.post(path, json={"inputs": "dog", "normalize": False})).json())
    assert abs(np.linalg.norm(raw) - 1) > 0.01
    unit = raw / np.linalg.norm(raw)
    np.testing.assert_allclose(unit, await embed(input="dog"), rtol=1e-5)

    image = base64.b64encode(encode_image()).decode()
    for template, full in ((None, "This is a photo of {}."), ("a {}.", "a {}.")):
        parameters = LABELS | {"hypothesis_template": template}
        answer = await client.post(path, json={"inputs": image, "parameters": parameters})
        as_object = {"inputs": {"image": image}, "parameters": parameters}
        assert (await client.post(path, json=as_object)).json() == answer.json()
        same = {"image": image, "classes": ["dog", "sky"], "templates": [full]}
        native = (await client.post("/v1/images:classify", json=same)).json()["data"][0]["classes"]
        assert answer.json() == [{"label": n["name"], "score": n["probability"]} for n in native]


async def test_errors_name_the_fields_of_the_request(client: httpx.AsyncClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": ["dog", " "]}, "inputs[1]"),
        ({"inputs": ["dog", 3]}, "inputs[1]"),
        ({"inputs": "dog " * 65, "truncate": False}, "inputs"),
        ({"inputs": "dog", "colour": "red"}, "colour"),
        ({"inputs": ["dog"], "parameters": LABELS}, "inputs"),
        ({"inputs": "eA==", "parameters": LABELS}, "inputs"),
        ({"inputs": "?", "parameters": LABELS}, "inputs"),
        ({"inputs": "x", "parameters": {"other": 1}}, "parameters.other"),
        ({"inputs": {"image": "eA=="}}, "parameters.candidate_labels"),
        ({"inputs": {"image": "eA==", "x": 1}, "parameters": LABELS}, "inputs.x"),
    ]
    for body, param in cases:
        answer = await client.post("/embed", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), answer.text
    blank = {"inputs": "eA==", "parameters": {"candidate_labels": ["dog", " "]}}
    error = (await client.post("/", json=blank)).json()["error"]
    assert error["param"].startswith("parameters.candidate_labels[1]")


async def test_an_image_alone_is_refused_with_the_routes_that_take_it(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    # As `image_classification` and `image_segmentation` of huggingface_hub send it.
    for media in (None, "application/octet-stream", "image/png"):
        headers = {} if media is None else {"Content-Type": media}
        answer = await client.post("/", content=encode_image(), headers=headers)
        assert answer.status_code == 415
        for route in ("candidate_labels", "/v1/images:classify", "/v1/images:segment"):
            assert route in answer.json()["error"]["message"]
