"""The Open Inference Protocol by HTTP: every form of request, errors, and model management."""

import base64
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.open_inference.tensors import InputTensor
from service.rest.open_inference import parse_infer
from tests.service.conftest import LIMITS, Encode, Serving
from tests.service.rest.conftest import client_of

INFER = "/v2/models/fake/infer"
LENGTH = "Inference-Header-Content-Length"
LOAD, UNLOAD = "/v2/repository/models/second/load", "/v2/repository/models/second/unload"
INDEX = "/v2/repository/index"
TEXT = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["dog"]}


@pytest.fixture
def limits() -> dict[str, Any]:
    return {"max_request_bytes": 200_000, "max_image_bytes": 40_000}


def image_input(*images: bytes) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": data}


def names_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [output["name"] for output in answer.json()["outputs"]]


async def test_null_and_what_clients_always_send_are_absent(client: httpx.AsyncClient) -> None:
    # Triton's own parameters and the model's name are ignored: its clients and KServe's send them.
    body = {
        "id": None,
        "model_name": "fake",
        "inputs": [TEXT | {"parameters": {"binary_data_size": None}}],
        "outputs": [{"name": "text_embeddings", "parameters": {"binary_data": None}}],
        "parameters": {"timeout": None, "binary_data_output": None, "triton_other": "x"},
    }
    absent = {"inputs": [TEXT | {"parameters": None}], "outputs": None, "parameters": None}
    plain = (await client.post(INFER, json={"inputs": [TEXT]})).json()
    for sent in (body, absent):
        assert (await client.post(INFER, json=sent)).json() == plain


async def test_perf_analyzer_asks_for_every_output_and_reads_statistics(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    model = (await client.get("/v2/models/fake")).json()
    every = [{"name": output["name"]} for output in model["outputs"]]
    of_images = [o["name"] for o in every if o["name"] != "text_embeddings"]
    image = base64.b64encode(encode_image()).decode()
    for tensor, names in (
        (TEXT, ["text_embeddings"]),
        (TEXT, ["text_embeddings"]),
        ({**TEXT, "name": "image", "data": [image]}, of_images),
    ):
        answer = await client.post(INFER, json={"inputs": [tensor], "outputs": every})
        assert names_of(answer) == names
    refused = await client.post(INFER, json={"inputs": [TEXT], "outputs": every[1:]})
    assert refused.status_code == 422
    (stats,) = (await client.get("/v2/models/fake/stats")).json()["model_stats"]
    counts = {name: total["count"] for name, total in stats["inference_stats"].items()}
    # Each success is counted in all stages, or as a hit of the cache.
    assert (counts["success"], counts["queue"], counts["cache_hit"]) == (3, 3, 1)
    assert {counts[f"compute_{stage}"] for stage in ("input", "infer", "output")} == {2}


PIXELS = {"name": "pixels", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [0, 0, 0]}
# The longest that pydantic reads; Python writes a product of two only without its limit of digits.
HUGE = 10**4000


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


LABELS = {"name": "text_embeddings", "parameters": {"classification": 3}}
SHARED = {**TEXT, "parameters": {"shared_memory_region": "a"}}
BAD: list[tuple[dict[str, Any], int, str | None]] = [
    ({"inputs": []}, 422, "inputs"),
    ({"inputs": [TEXT, TEXT]}, 422, "inputs"),
    ({"inputs": [TEXT], "colour": 1}, 422, "colour"),
    ({"inputs": [{**TEXT, "shape": [2**62]}]}, 413, "inputs[0].shape"),
    ({"inputs": [{**TEXT, "shape": [10**30]}]}, 422, "inputs[0].shape[0]"),
    ({"inputs": [{**PIXELS, "shape": [1, HUGE, HUGE, 3]}]}, 422, "inputs[0].shape[1]"),
    ({"inputs": [{**PIXELS, "data": [[[[[[HUGE]]]]]]}]}, 422, "inputs[0].data"),
    ({"inputs": [{**PIXELS, "data": nested(150)}]}, 422, "inputs[0].data"),
    ({"inputs": [{**PIXELS, "data": nested(250)}]}, 422, None),
    ({"inputs": [{**TEXT, "data": [5]}]}, 422, "inputs[0].data[0]"),
    ({"inputs": [{**TEXT, "data": None}]}, 422, "inputs[0].data"),
    ({"inputs": [{**TEXT, "data": [" "]}]}, 422, "texts[0]"),
    ({"inputs": [{**TEXT, "parameters": {"binary_data_size": 4}}]}, 422, "inputs[0].data"),
    ({"inputs": [SHARED]}, 422, "inputs[0].parameters.shared_memory_region"),
    ({"inputs": [{**TEXT, "name": "image", "data": ["?"]}]}, 422, "inputs[0].data[0]"),
    ({"inputs": [TEXT], "outputs": [{"name": "cls1"}]}, 422, "outputs[0]"),
    ({"inputs": [TEXT], "outputs": 2 * [{"name": "text_embeddings"}]}, 422, "outputs[1]"),
    ({"inputs": [TEXT], "outputs": [LABELS]}, 422, "outputs[0].parameters.classification"),
    ({"inputs": [TEXT], "parameters": {"timeout": -1}}, 422, "parameters.timeout"),
    ({"inputs": [TEXT], "parameters": {"binary_data_output": 1}}, 422, None),
]


async def test_a_wrong_request_names_its_field(client: httpx.AsyncClient) -> None:
    for body, status, param in BAD:
        answer = await client.post(INFER, json=body)
        assert answer.status_code == status, answer.text
        assert isinstance(answer.json()["error"], str)
        assert param in {None, answer.json()["param"]}, answer.text


async def test_wrong_binary_lengths_and_requests_are_refused(client: httpx.AsyncClient) -> None:
    blob = struct.pack("<I", 3) + b"dog"
    tensor: dict[str, Any] = {"name": "text", "shape": [1], "datatype": "BYTES"}
    tensor |= {"parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    content, headers = head + blob, {LENGTH: str(len(head))}
    assert (await client.post(INFER, content=content, headers=headers)).status_code == 200
    for broken, more, status in (
        (content + b"x", headers, 422),
        (content[:-1], headers, 422),
        *(
            (content, {LENGTH: n}, 422)
            for n in ("0", "-5", "1e3", "9" * 400, str(len(content) + 1))
        ),
        (content, {}, 422),
        (b"", headers, 422),
        # The middleware's errors have the protocol's form, too.
        (b"x" * 200_001, {}, 413),
        (b"{}", {"Content-Encoding": "br"}, 415),
    ):
        answer = await client.post(INFER, content=broken, headers=more)
        assert answer.status_code == status, answer.text
        assert isinstance(answer.json()["error"], str)
    query = await client.post(INFER + "?fit=aspect", json={"inputs": [TEXT]})
    version = await client.get("/v2/models/fake/versions/7/ready")
    assert [answer.status_code for answer in (query, version)] == [422, 404]


@given(st.binary(max_size=60), st.integers(-1, 70), st.none() | st.integers(-1, 250))
def test_random_bytes_after_the_json_are_read_or_refused(
    blob: bytes, size: int, length: int | None
) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}).encode()
    header = str(len(head) if length is None else length)
    with suppress(InvalidRequest):
        _, (read,) = parse_infer(head + blob, header, LIMITS)
        assert isinstance(read, InputTensor)
        assert struct.pack("<I", size - 4) + bytes(read.elements[0]) == blob


async def test_management_is_off_by_default_and_warns_without_keys(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    async with serving() as server, client_of(server) as client:
        for path in (INDEX, LOAD, UNLOAD):
            answer = await client.post(path)
            assert (answer.status_code, answer.json()["code"]) == (501, "management_not_enabled")
    async with serving(enable_management=True, api_keys="the-key-of-this-test"):
        assert warnings() == []
    async with serving(enable_management=True):
        assert warnings() == ["every caller may load and unload models: no API keys are set"]


BAD_MANAGEMENT: list[tuple[str, Any, int, str | None]] = [
    (INDEX, {"ready": 1}, 422, "ready"),
    (INDEX, [], 422, None),
    (LOAD, {"parameters": {"package": "../second"}}, 422, "parameters.package"),
    (LOAD, {"parameters": {"config": "{}"}}, 422, "parameters.config"),
    (LOAD, {"parameters": {"package": 5}}, 422, "parameters.package"),
    (LOAD, {"parameters": {"package": "missing"}}, 404, "parameters.package"),
    ("/v2/repository/models/missing/load", {}, 404, "parameters.package"),
    ("/v2/repository/models/-x/load", {}, 422, "name"),
    (UNLOAD, {}, 404, "model"),
    (UNLOAD, {"now": True}, 422, "now"),
]


async def test_a_wrong_management_request_names_its_field(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "tipserve.json").touch()
    settings = {"enable_management": True, "model_repository": tmp_path}
    async with serving(**settings) as server, client_of(server) as client:
        for path, body, status, param in BAD_MANAGEMENT:
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.json()["param"]) == (status, param), answer.text
            assert str(tmp_path) not in answer.text
        assert (await client.get("/v2/health/ready")).status_code == 200
