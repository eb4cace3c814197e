"""The pages: open to everyone, from this server alone, and the same bytes as the examples."""

import re
from pathlib import Path

import httpx
import pytest

from service.rest.pages import PAGES, WEB, page_url
from tests.service.conftest import Serving
from tests.service.rest.conftest import client_of


@pytest.mark.parametrize("path", [*PAGES, "/favicon.ico", "/web/app.js", "/web/swagger-ui.css"])
async def test_pages_need_no_key_and_accept_every_host(serving: Serving, path: str) -> None:
    async with serving(api_keys="the-key-of-this-test") as server, client_of(server) as client:
        answer = await client.get(path, headers={"host": "pages.example"})
        assert answer.status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_may_load_from_its_own_server_only(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy.pop("img-src") == "'self' blob: data:"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert policy["default-src"] == "'none'"
    assert not re.search(r"(src|href)=\"(/|\w+:)", answer.text), "an address that a prefix breaks"
    assert "style=" not in answer.text
    assert "<script>" not in answer.text


@pytest.mark.parametrize("path", ["/web/../app.py", "/web/%2e%2e/app.py", "/web/", "/web/none.js"])
async def test_other_files_are_not_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("name", ["scene.png", "squirrel.jpg", "fruits.jpg"])
def test_the_page_has_the_images_of_the_examples(name: str) -> None:
    assert (WEB / name).read_bytes() == (Path("examples") / name).read_bytes()


@pytest.mark.parametrize(
    ("host", "is_tls", "url"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:80/"),
        ("0.0.0.0", True, "https://localhost:80/"),
        ("::", False, "http://localhost:80/"),
        ("::1", False, "http://[::1]:80/"),
        ("box.example", False, "http://box.example:80/"),
    ],
)
def test_the_log_says_which_page_to_open(host: str, is_tls: bool, url: str) -> None:
    assert page_url(host, 80, is_tls=is_tls) == url
