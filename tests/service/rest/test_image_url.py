"""Images by URL over REST: off unless set, and then by the policy, in lists and in memory."""

import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from service.errors import InvalidRequest
from service.safety.url_fetch import Hold, UrlFetcher
from service.server import Server

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
URL = "https://images.example.org/a.png"


async def post(server: Server, body: dict[str, Any]) -> httpx.Response:
    url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed"
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.post(url, json=body)


def error_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


@pytest.mark.parametrize("url", [URL, "http://a.example.org/b", "file:///etc/passwd"])
async def test_urls_are_off_unless_set_and_it_says_so(serving: Serving, url: str) -> None:
    async with serving() as server:
        answer = await post(server, {"images": ["", url]})
    assert error_of(answer) == (422, "urls_not_enabled", "images[1]")
    assert "url_hosts" in answer.json()["error"]["message"]


async def test_other_hosts_than_those_set_are_refused(serving: Serving) -> None:
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
    """What the network would give, by URL; anything else fails as it would there."""
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


async def test_hosts_that_are_none_stop_the_start(make_settings: Any) -> None:
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
