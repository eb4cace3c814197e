"""`/v1/embeddings`: inputs, forms and errors; and the stock `openai` client under load."""

import base64
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.rest.openai import EmbeddingsBody
from service.server import Server
from tests.service.conftest import Encode

URL = "https://images.example.org/a.png"


@pytest.fixture
def limits() -> dict[str, Any]:
    return {"url_hosts": "images.example.org"}


async def ask(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/embeddings", json=body)


async def vectors(client: httpx.AsyncClient, **body: Any) -> NDArray[np.float64]:
    answer = await ask(client, **body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data])


def data_uri(image: bytes, media: str = "image/png") -> str:
    return f"data:{media};base64,{base64.b64encode(image).decode()}"


async def test_a_mixture_keeps_its_order_in_every_form(
    client: httpx.AsyncClient, encode_image: Encode
) -> None:
    images = [encode_image(seed=1), encode_image("JPEG", seed=2, size=(70, 50))]
    plain = [base64.b64encode(image).decode() for image in images]
    uris = [data_uri(images[0]), data_uri(images[1], "image/jpeg")]
    embedded = await client.post("/v1/images:embed", json={"images": plain})
    words = await client.post("/v1/texts:embed", json={"texts": ["dog", "two cats"]})
    first, second = (item["cls1"] for item in embedded.json()["data"])
    dog, cats = (item["embedding"] for item in words.json()["data"])
    forms: tuple[list[Any], ...] = (
        ["dog", uris[0], "two cats", uris[1]],
        [{"text": "dog"}, {"image": uris[0]}, {"text": "two cats"}, {"image": plain[1]}],
        [
            {"type": "text", "text": "dog"},
            {"type": "image_url", "image_url": {"url": uris[0]}},
            "two cats",
            {"type": "image_url", "image_url": {"url": uris[1], "detail": "low"}},
        ],
    )
    for items in forms:
        np.testing.assert_array_equal(
            await vectors(client, input=items), [dog, first, cats, second]
        )
    found = await vectors(client, input=[uris[0], plain[1]], modality="image")
    np.testing.assert_array_equal(found, [first, second])
    found = await vectors(client, input=["dog", {"text": "two cats"}], modality="text")
    np.testing.assert_array_equal(found, [dog, cats])


async def test_texts_that_look_like_an_image_are_texts(client: httpx.AsyncClient) -> None:
    texts = ("data: what it is", "data:text/plain,abc", {"text": URL}, {"text": data_uri(b"x")})
    assert len(await vectors(client, input=texts)) == len(texts)


async def test_null_is_absent(client: httpx.AsyncClient) -> None:
    """LiteLLM sends null for every field without a value, also for those of other servers."""
    plain = (await ask(client, input="dog")).json()
    for field in {*EmbeddingsBody.model_fields, "input_type"} - {"input"}:
        assert (await ask(client, input="dog", **{field: None})).json() == plain, field


GOOD = "data:image/png;base64,"
OTHER_URL = {"image": "https://a.example.com/"}
BAD: list[tuple[dict[str, Any], int, str, str]] = [
    ({"input": []}, 400, "empty_list", "input"),
    ({"input": " "}, 400, "blank_text", "input"),
    ({"input": ["x" * 2001]}, 400, "text_too_long", "input[0]"),
    ({"input": [1, 2]}, 400, "invalid_field", "input"),
    ({"input": ["dog", 3]}, 400, "invalid_field", "input[1]"),
    ({"input": [{"text": "dog", "colour": "red"}]}, 400, "unknown_field", "input[0].colour"),
    ({"input": [{"text": "dog", "image": GOOD}]}, 400, "invalid_field", "input[0]"),
    ({"input": ["dog", {}]}, 400, "invalid_field", "input[1]"),
    ({"input": [{"type": "image_url", "text": "a"}]}, 400, "invalid_field", "input[0]"),
    ({"input": ["dog", GOOD + "eA=="]}, 400, "invalid_image", "input[1]"),
    ({"input": ["dog", "data:image/png,xyz"]}, 400, "invalid_base64", "input[1]"),
    ({"input": ["dog", URL]}, 400, "ambiguous_input", "input[1]"),
    ({"input": ["dog", OTHER_URL]}, 400, "url_not_allowed", "input[1]"),
    ({"input": ["dog"] * 2049}, 400, "too_many_items", "input"),
    ({"input": [GOOD] * 33}, 400, "too_many_items", "input"),
    ({"input": "dog", "encoding_format": "bytes"}, 400, "invalid_field", "encoding_format"),
    ({"input": "dog", "truncate": "END"}, 400, "unknown_field", "truncate"),
]


async def test_errors_have_openais_status_and_name_the_fields_of_the_request(
    client: httpx.AsyncClient,
) -> None:
    for body, status, code, param in BAD:
        answer = await ask(client, **body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param), body
        assert error["type"] == "invalid_request_error"
        assert not {"images", "texts"} & set(re.split(r"\W", error["message"])[:1]), error


async def test_images_by_url_are_fetched_in_their_places(
    client: httpx.AsyncClient, encode_image: Encode, fetched: dict[str, bytes]
) -> None:
    fetched[URL] = image = encode_image()
    sent = await vectors(client, input=["dog", data_uri(image)])
    found = await vectors(client, input=["dog", {"image": URL}])
    np.testing.assert_array_equal(found, sent)
    np.testing.assert_array_equal(await vectors(client, input=[URL], modality="image"), sent[[1]])
    failed = await ask(client, input=["dog", {"image": URL}, {"image": URL + "?2"}])
    error = failed.json()["error"]
    assert (error["code"], error["message"]) == ("url_fetch_failed", "input[2]: nothing")


@pytest.mark.parametrize("content", [b"a", b"YQ== x\n", b"? 1\n", b"\xff\n"])
def test_a_file_that_is_no_vocabulary_stops_the_start(
    make_settings: Any, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="not a vocabulary of tiktoken"):
        Server(make_settings(token_vocabulary=tmp_path / "other"))
