"""The pages: open to everyone, from this server alone, and the same bytes as the examples."""

import re
from pathlib import Path

import httpx
import pytest

from service.rest.pages import PAGES, WEB, page_url
from tests.service.conftest import Serving
from tests.service.rest.conftest import client_of


def check_sources(page: httpx.Response) -> None:
    """It may load from its own server only."""
    parts = page.headers["content-security-policy"].split("; ")
    policy = dict(part.split(" ", 1) for part in parts)
    assert policy.pop("img-src") == "'self' blob: data:"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert policy["default-src"] == "'none'"
    assert not re.search(r"(src|href)=\"(/|\w+:)", page.text), "an address that a prefix breaks"
    assert "style=" not in page.text
    assert "<script>" not in page.text


async def test_pages_and_their_files_need_no_key_and_no_other_file_is_served(
    serving: Serving,
) -> None:
    async with serving(api_keys="the-key-of-this-test") as server, client_of(server) as client:
        for path in (*PAGES, "/favicon.ico", "/web/app.js", "/web/swagger-ui.css"):
            answer = await client.get(path, headers={"host": "pages.example"})
            assert answer.status_code == 200, path
            if path in PAGES:
                check_sources(answer)
        for path in ("/web/../app.py", "/web/%2e%2e/app.py", "/web/", "/web/none.js"):
            assert (await client.get(path)).status_code in {401, 404}, path
        assert (await client.get("/v1/models")).status_code == 401
    for name in ("scene.png", "squirrel.jpg", "fruits.jpg"):
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
