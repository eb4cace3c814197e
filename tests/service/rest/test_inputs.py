"""Options and images from queries, forms, JSON and URLs."""

import base64
import threading
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.errors import InvalidRequest
from service.messages import EmbedImagesRequest, SegmentClass, SegmentImagesRequest
from service.rest import inputs
from service.rest.errors import invalid_fields
from service.rest.inputs import decode_images, image_texts, parse_form, parse_pairs
from service.rest.requests import EmbedImagesBody, ImageBody, SegmentImagesBody
from service.server import Server
from tests.service.conftest import Encode, Serving
from tests.service.rest.conftest import client_of

URL = "https://images.example.org/a.png"
BOUNDARY = "multipart/form-data; boundary=xyz"


def form(*parts: tuple[str, bytes]) -> bytes:
    lines = b"".join(
        b"--xyz\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + body + b"\r\n"
        for head, body in parts
    )
    return lines + b"--xyz--\r\n"


ONE = form(('name="image"; filename="a"', b"x"))


def test_a_query_may_have_every_option_or_none() -> None:
    assert parse_pairs(EmbedImagesBody, []).to_message((b"x",)) == EmbedImagesRequest(
        images=(b"x",)
    )
    pairs = [
        ("classes", "dog, grass"),
        ("classes", "sky"),
        ("background_classes", "wall"),
        ("background_threshold", "0.25"),
        ("templates", "tcl"),
        ("features", "patches"),
        ("resolution", "56"),
        ("include_scores", "true"),
    ]
    assert parse_pairs(SegmentImagesBody, pairs).to_message(()) == SegmentImagesRequest(
        images=(),
        classes=tuple(SegmentClass(name=n) for n in ("dog", "grass", "sky")),
        background_classes=(SegmentClass(name="wall"),),
        background_threshold=0.25,
        templates="tcl",
        features="patches",
        resolution=56,
        include_scores=True,
    )


def test_custom_templates_may_have_commas() -> None:
    pairs = [("templates", "a {}, small"), ("templates", "the {}")]
    message = parse_pairs(SegmentImagesBody, pairs).to_message(())
    assert message.templates == ("a {}, small", "the {}")


def test_a_form_has_fields_and_images_in_order() -> None:
    large = bytes(range(256)) * 8192
    raw = form(
        ('name="images"; filename="a"', b"one"),
        ('name="outputs"', b"cls1,cls2"),
        ('name="image"; filename="b"', large),
    )
    assert parse_form(raw, BOUNDARY, 2) == ([("outputs", "cls1,cls2")], (b"one", large))


@pytest.mark.parametrize(
    ("raw", "content_type", "code"),
    [
        (b"--other\r\n\r\n", BOUNDARY, "invalid_body"),
        (ONE, "multipart/form-data", "invalid_body"),
        (ONE, "multipart/form-data; boundary=", "invalid_body"),
        (form(('name="outputs"', b"\xff")), BOUNDARY, "invalid_body"),
        (form(('name="photo"; filename="a"', b"x")), BOUNDARY, "unknown_field"),
    ],
)
def test_a_malformed_form_is_invalid(raw: bytes, content_type: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_form(raw, content_type, 2)
    assert caught.value.code == code


def test_base64_and_data_uris_are_read() -> None:
    text = base64.b64encode(b"image").decode()
    assert image_texts(ImageBody(image=text)) == [text]
    assert image_texts(ImageBody(images=[])) == []
    uri = f"data:image/png;base64,{text}"
    assert decode_images([uri, text], {}) == (b"image", b"image")


def test_an_image_that_is_not_base64_keeps_its_place_in_a_partial_request() -> None:
    refused = InvalidRequest("images[2] is wrong.")
    texts, fetched = ["aGVsbG8=", "%", "https://x"], {2: refused}
    first, wrong, url = decode_images(texts, fetched, is_partial=True)
    assert (first, url) == (b"hello", refused)
    assert isinstance(wrong, InvalidRequest)
    assert (wrong.code, wrong.param) == ("invalid_base64", "images[1]")


async def post(server: Server, body: dict[str, Any]) -> httpx.Response:
    async with client_of(server) as client:
        return await client.post("/v1/images:embed", json=body)


def error_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


async def test_urls_of_other_hosts_and_too_many_urls_are_refused(serving: Serving) -> None:
    async with serving(url_hosts="images.example.org", max_images_per_request=2) as server:
        for url in ("https://evil.example.org/a.png", URL.replace("https", "http")):
            answer = await post(server, {"image": url})
            assert error_of(answer) == (422, "url_not_allowed", "images[0]")
        # The limit counts before any image is fetched.
        many = await post(server, {"images": [URL] * 3})
        assert error_of(many) == (413, "too_many_items", "images")


async def test_fetched_and_sent_images_keep_their_places(
    serving: Serving, encode_image: Encode, fetched: dict[str, bytes]
) -> None:
    images = [encode_image(seed=seed) for seed in range(3)]
    fetched |= {URL: images[0], URL + "?2": images[2]}
    texts = [base64.b64encode(image).decode() for image in images]
    async with serving(url_hosts="images.example.org") as server:
        sent = await post(server, {"images": texts})
        mixed = await post(server, {"images": [URL, texts[1], URL + "?2"]})
        failed = await post(server, {"images": [texts[0], URL + "?3"]})
        assert server.admission.num_body_bytes == 0
    assert mixed.json()["data"] == sent.json()["data"]
    assert error_of(failed) == (422, "url_fetch_failed", "images[1]")


async def test_fetched_bytes_count_towards_the_memory_for_bodies(
    serving: Serving, fetched: dict[str, bytes]
) -> None:
    fetched[URL] = bytes(5000)
    limits = {f"max_{name}_bytes": 5000 for name in ("image", "request", "body_memory")}
    async with serving(url_hosts="images.example.org", **limits) as server:
        answer = await post(server, {"image": URL})
        assert server.admission.num_body_bytes == 0
    assert error_of(answer)[:2] == (429, "body_memory_full")


async def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(
    client: httpx.AsyncClient,
) -> None:
    raw = b'{"images": [' + b"0," * 220_000 + b"0]}"
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/v1/images:embed", content=raw, headers=headers)
    assert error_of(answer) == (413, "request_too_large", None)
    files = [("images", (f"{i}.png", b"x")) for i in range(33)]
    answer = await client.post("/v1/images:embed", files=files)
    assert error_of(answer) == (413, "too_many_items", "images")
    form = {"classes": "a," * 220_000}
    answer = await client.post("/v1/images:segment", files=files[:1], data=form)
    assert error_of(answer) == (413, "request_too_large", None)


async def test_errors_of_a_body_are_made_in_the_pool(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def recorded(error: ValidationError) -> InvalidRequest:
        threads.append(threading.current_thread().name)
        return invalid_fields(error)

    monkeypatch.setattr(inputs, "invalid_fields", recorded)
    paths = (
        "/v1/images:embed",
        "/v1/texts:embed",
        "/v1/embeddings",
        "/invocations",
        "/v2/models/fake/infer",
        "/v2/repository/index",
        "/v2/repository/models/fake/load",
        "/v2/repository/models/fake/unload",
    )
    async with serving(enable_management=True) as server, client_of(server) as client:
        for path in paths:
            # OpenAI answers wrong input with 400.
            expected = 400 if path == "/v1/embeddings" else 422
            assert (await client.post(path, json={"colour": 0})).status_code == expected
        form = {"colour": "red"}
        files = {"image": ("a.png", b"x")}
        answer = await client.post("/v1/images:embed", files=files, data=form)
        assert error_of(answer)[0] == 422
    assert len(threads) == len(paths) + 1
    assert all(name.startswith("pool") for name in threads), threads
