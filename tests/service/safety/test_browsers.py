"""Requests that a web page makes its visitor's browser send."""

from contextlib import nullcontext
from typing import Any

import httpx
import pytest

from service.errors import Forbidden
from service.safety.browsers import BrowserRules
from service.settings import load_settings
from tests.service.conftest import Serving
from tests.service.rest.conftest import client_of

KEY = "the-key-of-this-test"
EMBED, UNLOAD = "/v1/texts:embed", "/v2/repository/models/fake/unload"
INDEX, INFER = "/v2/repository/index", "/v2/models/fake/infer"


def rules(**values: Any) -> BrowserRules:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return BrowserRules.from_settings(load_settings(flags, {}))


OWN = {"origin": "http://localhost:8000"}


@pytest.mark.parametrize(
    ("host", "headers", "is_served"),
    [
        ("localhost:8000", {"sec-fetch-site": "cross-site"}, False),
        ("localhost:8000", {"sec-fetch-site": "cross-site", **OWN}, False),
        ("localhost:8000", {"origin": "https://evil.example"}, False),
        ("localhost:8000", {"origin": "http://localhost"}, False),
        (
            "localhost:8000",
            {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"},
            False,
        ),
        ("localhost:8000", {"origin": "http://localhost:8000.evil.example"}, False),
        ("localhost:8000", {"origin": "null"}, False),
        ("localhost:8000", {"origin": ""}, False),
        ("localhost:8000", {}, True),
        ("localhost:8000", {"sec-fetch-site": "none"}, True),
        ("localhost:8000", OWN, True),
        ("LocalHost:8000", {"sec-fetch-site": "same-origin", **OWN}, True),
        ("api.example", {"origin": "https://api.example"}, True),
        ("api.example:443", {"origin": "https://api.example"}, True),
        # A proxy that rewrites Host.
        ("10.0.0.7:8000", {"origin": "https://api.example", "sec-fetch-site": "same-origin"}, True),
    ],
)
def test_own_pages_and_other_clients_are_served(
    host: str, headers: dict[str, str], is_served: bool
) -> None:
    given = {b"host": host, **{name.encode(): value for name, value in headers.items()}}
    with nullcontext() if is_served else pytest.raises(Forbidden, match="another origin") as caught:
        rules(host="0.0.0.0").check(given)
    assert caught is None or caught.value.code == "cross_origin"


LOOPBACK = ("localhost:8000", "LOCALHOST", "a.localhost", "127.0.0.1:8000", "127.9.9.9", "[::1]:80")
FOREIGN = ("evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.7")


@pytest.mark.parametrize(
    ("values", "served", "refused"),
    [
        ({}, LOOPBACK, FOREIGN),
        ({"host": "::1"}, LOOPBACK, FOREIGN),
        ({"host": "0.0.0.0"}, (*LOOPBACK, *FOREIGN), ()),
        ({"api_keys_file": "/keys"}, (*LOOPBACK, *FOREIGN), ()),
        ({"host": "127.0.0.1", "api_keys_file": "/keys"}, (*LOOPBACK, *FOREIGN), ()),
        ({"trusted_proxies": "127.0.0.1"}, (*LOOPBACK, *FOREIGN), ()),
    ],
)
def test_a_loopback_server_without_keys_has_loopback_names_only(
    values: dict[str, str], served: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    checked = rules(**values)
    for host in served:
        checked.check({b"host": host})
    for host in refused:
        with pytest.raises(Forbidden) as caught:
            checked.check({b"host": host})
        assert caught.value.code == "host_not_allowed"


def code_of(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    return answer.status_code, body.get("code") or body["error"]["code"]


async def test_a_page_can_neither_drive_nor_read_the_server(serving: Serving) -> None:
    """The requests by which a page unloaded the default model, and read it after rebinding."""
    async with serving(enable_management=True) as server, client_of(server) as client:
        for path in (UNLOAD, INDEX, INFER):
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
                answer = await client.post(path, content=b"{}", headers={"Content-Type": kind})
                assert code_of(answer) == (415, "unsupported_media_type")
            for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
                answer = await client.post(path, content=b"{}", headers=headers)
                assert code_of(answer) == (403, "cross_origin")
        rebound = {"Host": f"evil.example:{server.ports['http']}"}
        rebound["Origin"] = f"http://{rebound['Host']}"
        for path in ("/v1/models", "/v2", "/metrics"):
            assert code_of(await client.get(path, headers=rebound)) == (403, "host_not_allowed")
        answer = await client.post(EMBED, json={"texts": ["a"]}, headers=rebound)
        assert code_of(answer) == (403, "host_not_allowed")
        for path in ("/v2/health/live", "/v2/health/ready", "/ping", "/docs", "/openapi.json"):
            assert (await client.get(path, headers=rebound)).status_code == 200
        # What stock Triton clients send: nothing, octets, or JSON.
        for kinds in ({}, {"Content-Type": "application/octet-stream"}):
            assert (await client.post(INDEX, content=b"{}", headers=kinds)).status_code == 200
        assert (await client.post(INDEX)).status_code == 200
        assert (await client.post(EMBED, json={"texts": ["a"]})).status_code == 200


async def test_pages_of_listed_origins_may_call_and_read(serving: Serving) -> None:
    page = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    async with (
        serving(cors_origins="https://app.example, https://b.example", api_keys=KEY) as server,
        client_of(server) as client,
    ):
        preflight = await client.options(EMBED, headers=page | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == page["Origin"]
        answer = await client.post(EMBED, json={"texts": ["a"]}, headers=page | {"X-Api-Key": KEY})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == page["Origin"]
        # An error is readable as well: it says what to change.
        refused = await client.post(EMBED, json={"texts": ["a"]}, headers=page)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == page["Origin"]
        other = page | {"Origin": "https://evil.example", "X-Api-Key": KEY}
        assert code_of(await client.get("/v1/models", headers=other)) == (403, "cross_origin")
        assert (await client.options(EMBED, headers=other | asked)).status_code == 400
