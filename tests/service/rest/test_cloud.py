"""The routes for clouds: the route that a body means, Vertex AI's instances, and errors."""

import base64
from typing import Any

import httpx

from tests.service.conftest import Encode

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


def b64(image: bytes) -> str:
    return base64.b64encode(image).decode()


async def test_a_body_or_a_header_chooses_the_route(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    image = encode_image()
    png: dict[str, Any] = {"content": image, "headers": {"Content-Type": "image/png"}}
    for path, body in (
        ("/v1/embeddings", {"json": {"input": ["dog", f"data:image/png;base64,{b64(image)}"]}}),
        ("/v1/texts:embed", {"json": {"texts": ["dog"], "templates": "tcl"}}),
        ("/v1/images:segment", {"json": {"image": b64(image), "classes": ["dog", "sky"]}}),
        ("/v1/images:embed", {"json": {"images": [b64(image)], "outputs": ["cls2"]}}),
        ("/v1/images:embed", {"files": {"image": ("a.png", image)}, "data": {"outputs": "cls2"}}),
        ("/v1/images:embed", {**png, "params": {"outputs": "cls2"}}),
    ):
        asked = await client.post("/invocations", **body)
        direct = await client.post(path, **body)
        assert direct.status_code == 200, direct.text
        assert (asked.status_code, asked.content) == (200, direct.content), (path, asked.text)
    direct = await client.post("/v1/images:segment?classes=dog%20house,sky", **png)
    png["headers"][ATTRIBUTES] = "/v1/images:segment?classes=dog%20house,sky"
    assert (await client.post("/invocations", **png)).content == direct.content
    traced = await client.post("/invocations", json={"texts": ["a"]}, headers={ATTRIBUTES: "id=7"})
    assert "embedding" in traced.json()["data"][0]
    named = {ATTRIBUTES: "/v2/repository/index"}
    unknown = await client.post("/invocations", json={}, headers=named)
    assert unknown.json()["error"]["code"] == "unknown_route"


async def test_instances_become_predictions(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    image, uri = b64(encode_image(seed=1)), f"data:image/png;base64,{b64(encode_image(seed=2))}"
    body = {"input": ["dog", {"image": image}, uri], "dimensions": 4}
    embedded = (await client.post("/v1/embeddings", json=body)).json()
    vertex = {"image": {"bytesBase64Encoded": image}}
    for second in ({"b64": image}, {"image": {"b64": image}}, vertex, {"image": image}):
        asked = {"instances": [{"text": "dog"}, second, uri], "parameters": {"dimensions": 4}}
        answer = await client.post("/invocations", json=asked)
        assert answer.json() == {"predictions": embedded["data"]}


async def test_errors_name_instances_and_parameters(client: httpx.AsyncClient) -> None:
    broken = {"b64": "eA=="}
    for body, status, param in (
        ({"instances": []}, 422, "instances"),
        ({"instances": ["dog", broken]}, 422, "instances[1]"),
        ({"instances": ["dog", {"colour": "red"}]}, 422, "instances[1].colour"),
        ({"instances": [broken] * 33}, 413, "instances"),
        ({"instances": ["dog"], "colour": "red"}, 422, "colour"),
        ({"instances": ["dog"], "parameters": {"dimensions": 9}}, 422, "dimensions"),
        ({"instances": ["dog"], "parameters": {"model": "other"}}, 404, "model"),
        ({"input": ["dog", " "]}, 422, "input[1]"),
    ):
        answer = await client.post("/invocations", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), body
    json_type = {"Content-Type": "application/json"}
    for raw, status in ((b"[", 422), (b"[1]", 422), (b"[" + b"1," * 1_000_001 + b"1]", 413)):
        answer = await client.post("/invocations", content=raw, headers=json_type)
        assert answer.status_code == status
    assert (await client.post("/invocations", content=b"x")).status_code == 415
