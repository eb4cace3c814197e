"""Options and images from queries, forms, JSON and URLs."""

import base64
from typing import Any

import httpx
import pytest

from service.errors import InvalidRequest
from service.messages import EmbedImagesRequest, SegmentClass, SegmentImagesRequest
from service.rest.inputs import decode_images, image_texts, parse_form, parse_pairs
from service.rest.requests import EmbedImagesOptions, ImageBody, SegmentImagesOptions
from service.safety.url_fetch import Hold, UrlFetcher
from service.server import Server
from tests.service.conftest import Encode, Serving

URL = "https://images.example.org/a.png"
BOUNDARY = "multipart/form-data; boundary=xyz"


def form(*parts: tuple[str, bytes]) -> bytes:
    lines = b"".join(
        b"--xyz\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + body + b"\r\n"
        for head, body in parts
    )
    return lines + b"--xyz--\r\n"


def test_an_empty_query_has_the_defaults_of_the_messages() -> None:
    assert parse_pairs(EmbedImagesOptions, []).to_message((b"x",)) == EmbedImagesRequest(
        images=(b"x",)
    )
    asked = parse_pairs(SegmentImagesOptions, [("classes", "dog")]).to_message((b"x",))
    dog = (SegmentClass(name="dog"),)
    assert asked == SegmentImagesRequest(images=(b"x",), classes=dog)


def test_a_query_may_have_every_option() -> None:
    pairs = [
        ("classes", "dog, grass"),
        ("classes", "sky"),
        ("background_classes", "wall"),
        ("background_threshold", "0.25"),
        ("templates", "tcl"),
        ("features", "patches"),
        ("fit", "squash"),
        ("resolution", "56"),
        ("include_scores", "true"),
        ("model", "m"),
    ]
    assert parse_pairs(SegmentImagesOptions, pairs).to_message(()) == SegmentImagesRequest(
        images=(),
        classes=tuple(SegmentClass(name=n) for n in ("dog", "grass", "sky")),
        background_classes=(SegmentClass(name="wall"),),
        background_threshold=0.25,
        templates="tcl",
        features="patches",
        fit="squash",
        resolution=56,
        include_scores=True,
        model="m",
    )


def test_custom_templates_may_have_commas() -> None:
    pairs = [("templates", "a {}, small"), ("templates", "the {}")]
    message = parse_pairs(SegmentImagesOptions, pairs).to_message(())
    assert message.templates == ("a {}, small", "the {}")


@pytest.mark.parametrize(
    ("pairs", "param", "code"),
    [
        ([("colour", "red")], "colour", "unknown_field"),
        ([("fit", "crop")], "fit", "invalid_field"),
        ([("resolution", "big")], "resolution", "invalid_field"),
        ([("resolution", "28"), ("resolution", "56")], "resolution", "invalid_field"),
        ([("image", "abc")], "image", "unknown_field"),
    ],
)
def test_a_wrong_query_names_its_field(pairs: list[tuple[str, str]], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_pairs(EmbedImagesOptions, pairs)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_a_form_has_fields_and_images_in_order() -> None:
    large = bytes(range(256)) * 8192
    raw = form(
        ('name="images"; filename="a"', b"one"),
        ('name="outputs"', b"cls1,cls2"),
        ('name="image"; filename="b"', large),
    )
    assert parse_form(raw, BOUNDARY, 2) == ([("outputs", "cls1,cls2")], (b"one", large))


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [
        (b"--other\r\n\r\n", BOUNDARY),
        (form(('name="image"; filename="a"', b"x")), "multipart/form-data"),
        (form(('name="image"; filename="a"', b"x")), "multipart/form-data; boundary="),
        (form(('name="outputs"', b"\xff")), BOUNDARY),
    ],
)
def test_a_malformed_form_is_invalid(raw: bytes, content_type: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_form(raw, content_type, 2)
    assert caught.value.code == "invalid_body"


def test_a_file_in_another_field_is_an_error() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_form(form(('name="photo"; filename="a"', b"x")), BOUNDARY, 2)
    assert caught.value.param == "photo"


def test_base64_and_data_uris_are_read() -> None:
    text = base64.b64encode(b"image").decode()
    assert decode_images(image_texts(ImageBody(image=text)), {}) == (b"image",)
    uri = f"data:image/png;base64,{text}"
    assert decode_images([uri, text], {}) == (b"image", b"image")
    assert image_texts(ImageBody(images=[])) == []


@pytest.mark.parametrize("text", ["%%%", "abc", "data:image/png,abc", "https://x/y.png"])
def test_an_image_that_is_not_base64_names_its_index(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_images(["", text], {})
    assert (caught.value.code, caught.value.param) == ("invalid_base64", "images[1]")


@pytest.mark.parametrize("body", [ImageBody(), ImageBody(image="", images=[])])
def test_a_body_has_either_image_or_images(body: ImageBody) -> None:
    with pytest.raises(InvalidRequest, match="either"):
        image_texts(body)


def test_an_image_that_is_not_base64_keeps_its_place_in_a_partial_request() -> None:
    refused = InvalidRequest("images[2] is wrong.")
    texts, fetched = ["aGVsbG8=", "%", "https://x"], {2: refused}
    first, wrong, url = decode_images(texts, fetched, is_partial=True)
    assert (first, url) == (b"hello", refused)
    assert isinstance(wrong, InvalidRequest)
    assert (wrong.code, wrong.param) == ("invalid_base64", "images[1]")


async def post(server: Server, body: dict[str, Any]) -> httpx.Response:
    url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed"
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.post(url, json=body)


def error_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


@pytest.mark.parametrize("url", [URL, "http://a.example.org/b", "file:///etc/passwd"])
async def test_urls_are_refused_unless_hosts_are_set(serving: Serving, url: str) -> None:
    async with serving() as server:
        answer = await post(server, {"images": ["", url]})
    assert error_of(answer) == (422, "urls_not_enabled", "images[1]")
    assert "url_hosts" in answer.json()["error"]["message"]


async def test_urls_of_other_hosts_are_refused(serving: Serving) -> None:
    async with serving(url_hosts="images.example.org") as server:
        other = await post(server, {"image": "https://evil.example.org/a.png"})
        plain = await post(server, {"image": URL.replace("https", "http")})
    assert error_of(other) == (422, "url_not_allowed", "images[0]")
    assert error_of(plain) == (422, "url_not_allowed", "images[0]")


async def test_too_many_images_are_refused_before_any_is_fetched(serving: Serving) -> None:
    async with serving(url_hosts="images.example.org", max_images_per_request=2) as server:
        answer = await post(server, {"images": [URL] * 3})
    assert error_of(answer) == (413, "too_many_items", "images")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Images by URL; all other URLs fail."""
    images: dict[str, bytes] = {}

    async def fetch(self: UrlFetcher, url: str, hold: Hold, *, param: str) -> bytes:
        if url not in images:
            raise InvalidRequest(f"{param}: nothing", code="url_fetch_failed", param=param)
        hold(len(images[url]))
        return images[url]

    monkeypatch.setattr(UrlFetcher, "fetch", fetch)
    return images


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
        assert server.protection.body_memory.num_bytes == 0
    assert mixed.json()["data"] == sent.json()["data"]
    assert error_of(failed) == (422, "url_fetch_failed", "images[1]")


async def test_fetched_bytes_count_towards_the_memory_for_bodies(
    serving: Serving, encode_image: Encode, fetched: dict[str, bytes]
) -> None:
    fetched[URL] = bytes(5000)
    limits = {f"max_{name}_bytes": 5000 for name in ("image", "request", "body_memory")}
    async with serving(url_hosts="images.example.org", **limits) as server:
        answer = await post(server, {"image": URL})
        assert server.protection.body_memory.num_bytes == 0
    assert error_of(answer)[:2] == (429, "body_memory_full")


async def test_invalid_hosts_stop_the_start(make_settings: Any) -> None:
    with pytest.raises(ValueError, match="url_hosts"):
        Server(make_settings(url_hosts="*"))


async def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(serving: Serving) -> None:
    async with serving() as server:
        url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed"
        async with httpx.AsyncClient(timeout=20) as client:
            raw = b'{"images": [' + b'"",' * 1_000_001 + b'""]}'
            answer = await client.post(
                url, content=raw, headers={"Content-Type": "application/json"}
            )
            files = [("images", (f"{i}.png", b"x")) for i in range(33)]
            form = await client.post(url, files=files)
    assert error_of(answer) == (413, "request_too_large", None)
    assert error_of(form) == (413, "too_many_items", "images")
