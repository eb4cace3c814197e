"""The stock `openai` client, sync and async, against the real program."""

import asyncio
import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

Photo = Callable[..., bytes]
LIMIT_S = 60
BOTH = pytest.mark.parametrize("kind", ["sync", "async"])
KEY = "the-key-of-this-test"


def ask(service: "Service", kind: str, method: str, key: str = "none", **options: Any) -> Any:
    """Call a method of a new client, such as `embeddings.create`."""
    url = f"http://127.0.0.1:{service.ports['http']}/v1"
    settings: Any = {"base_url": url, "api_key": key, "timeout": LIMIT_S, "max_retries": 0}
    part, _, name = method.partition(".")
    if kind == "sync":
        with openai.OpenAI(**settings) as client:
            return getattr(getattr(client, part), name)(**options)

    async def ask_async() -> Any:
        async with openai.AsyncOpenAI(**settings) as connected:
            return await getattr(getattr(connected, part), name)(**options)

    return asyncio.run(ask_async())


def data_uri(image: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"


def rows(answer: Any) -> NDArray[np.float32]:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], dtype=np.float32)


def native(service: "Service", texts: list[str], images: list[bytes]) -> NDArray[np.float32]:
    """Embeddings of the native routes: texts, then images."""
    words = service.over_rest("embed_texts", {"texts": texts}).arrays
    embedded = service.over_rest("embed_images", {"images": images}).arrays
    found = [words[f"{i}.embedding"] for i in range(len(texts))]
    return np.stack([*found, *(embedded[f"{i}.cls1"] for i in range(len(images)))])


@BOTH
def test_texts_images_and_mixtures(service: "Service", photo: Photo, kind: str) -> None:
    images, texts = [photo(1), photo(2, (60, 90))], ["a dog", "red house"]
    expected = native(service, texts, images)
    uris = [data_uri(image) for image in images]
    for given, places in (
        ("a dog", [0]),
        (texts, [0, 1]),
        (uris[0], [2]),
        ([uris[1], texts[1], uris[0], texts[0]], [3, 1, 2, 0]),
    ):
        answer = ask(service, kind, "embeddings.create", model="tiny", input=given)
        np.testing.assert_array_equal(rows(answer), expected[places])
        assert (answer.object, answer.model) == ("list", "tiny")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens > 0


@BOTH
def test_input_forms_in_extra_body(service: "Service", photo: Photo, kind: str) -> None:
    uri = data_uri(photo(1))
    items = [{"text": "a dog"}, {"image": uri}, {"type": "image_url", "image_url": {"url": uri}}]
    expected = native(service, ["a dog"], [photo(1)])
    for options, places in (
        ({"input": items}, [0, 1, 1]),
        ({"input": [uri], "extra_body": {"modality": "image"}}, [1]),
        ({"input": ["a dog"], "extra_body": {"modality": "text"}, "user": "me"}, [0]),
    ):
        answer = ask(service, kind, "embeddings.create", model="tiny", **options)
        np.testing.assert_array_equal(rows(answer), expected[places])


@BOTH
def test_formats_and_dimensions(service: "Service", photo: Photo, kind: str) -> None:
    options: Any = {"model": "tiny", "input": ["a dog", data_uri(photo(1))]}
    usual = rows(ask(service, kind, "embeddings.create", **options))
    numbers = ask(service, kind, "embeddings.create", encoding_format="float", **options)
    np.testing.assert_array_equal(rows(numbers), usual)
    text = ask(service, kind, "embeddings.create", encoding_format="base64", **options)
    decoded = [np.frombuffer(base64.b64decode(item.embedding), "<f4") for item in text.data]
    np.testing.assert_array_equal(np.stack(decoded), usual)
    short = rows(ask(service, kind, "embeddings.create", dimensions=8, **options))
    wanted = usual[:, :8] / np.linalg.norm(usual[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(short, wanted, rtol=1e-5, atol=1e-7)


@BOTH
def test_models_are_listed_and_found(service: "Service", kind: str) -> None:
    (model,) = ask(service, kind, "models.list").data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "tipserve")
    assert model.created > 1_700_000_000
    assert ask(service, kind, "models.retrieve", model="tiny") == model
    with pytest.raises(openai.NotFoundError, match="No model 'other'"):
        ask(service, kind, "models.retrieve", model="other")


@BOTH
def test_errors_are_the_clients_exceptions(service: "Service", kind: str) -> None:
    wrong = openai.BadRequestError
    cases: list[tuple[dict[str, Any], Any, str, str]] = [
        ({"input": ["a dog", data_uri(b"no image")]}, wrong, "invalid_image", "input[1]"),
        ({"input": [[1, 2]]}, wrong, "invalid_field", "input"),
        ({"input": "a", "dimensions": 33}, wrong, "invalid_field", "dimensions"),
        ({"input": "a", "model": "other"}, openai.NotFoundError, "model_not_found", "model"),
        ({"input": ["a"] * 2049}, wrong, "too_many_items", "input"),
    ]
    for options, error, code, param in cases:
        with pytest.raises(error) as caught:
            ask(service, kind, "embeddings.create", **{"model": "tiny", **options})
        found: Any = caught.value
        assert (found.code, found.param) == (code, param)
        assert found.request_id
    assert (
        len(ask(service, kind, "embeddings.create", model="tiny", input=["a"] * 2048).data) == 2048
    )


@pytest.fixture(scope="module")
def locked(run_service: Any, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Service]":
    """Service that requires a key."""
    keys: Path = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY + "\n")
    with run_service(f"--api-keys-file={keys}") as running:
        yield running


@BOTH
def test_a_key_is_sent_as_the_client_sends_it(locked: "Service", kind: str) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(locked, kind, "embeddings.create", model="tiny", input="a dog")
    assert caught.value.code == "invalid_api_key"
    assert rows(ask(locked, kind, "embeddings.create", KEY, model="tiny", input="a")).shape == (
        1,
        32,
    )
