"""Only public addresses of allowed hosts are fetched from, within limits."""

import asyncio
import gzip
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme

from service.errors import InvalidRequest, Overloaded
from service.safety import url_fetch
from service.safety.url_fetch import (
    UrlFetcher,
    UrlRefused,
    check_url,
    is_public,
    read_hosts,
)

words = str.split
PUBLIC = words("93.184.215.14 8.8.8.8 1.1.1.1 2606:2800:21f:cb07::1 2a00:1450::1")
REFUSED = words("""
    127.0.0.1 127.255.255.254 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 100.64.0.1 100.100.100.200
    169.254.169.254 168.63.129.16 192.0.0.192 192.0.2.1 192.88.99.1 198.18.0.1 224.0.0.1 240.0.0.1
    255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1
    64:ff9b::808:808 64:ff9b:1::a00:1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1 2001:20::1
    3fff::1 2002:7f00:1:: fe80::1 fe80::1%eth0 fd00:ec2::254 fc00::1 ff02::1 4000::1
    2130706433 0x7f.1 localhost
""")


def test_only_public_addresses_pass_however_they_are_written() -> None:
    assert [one for one in (*PUBLIC, *REFUSED, "") if is_public(one)] == PUBLIC


ALLOWED = read_hosts("images.example.org, *.CDN.example.com")


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("https://images.example.org", "images.example.org", "/"),
        ("HTTPS://Images.Example.ORG:443/a?b=c#d", "images.example.org", "/a?b=c"),
        ("https://a.cdn.example.com/%C3%A4", "a.cdn.example.com", "/%C3%A4"),
        ("https://a.b.cdn.example.com/", "a.b.cdn.example.com", "/"),
    ],
)
def test_urls_of_allowed_hosts_are_read(url: str, host: str, path: str) -> None:
    assert check_url(url, ALLOWED) == (host, path)


BAD_URLS = {
    "does not fetch from": """
        https://other.example.org/ https://images.example.org.evil.net/
        https://evilimages.example.org/ https://cdn.example.com/ https://evilcdn.example.com/
        https://images.example.org:8443/ https://images.example.org:22/
        https://images.example.org:99999/
    """,
    "write https://, the full name": """
        http://images.example.org/ ftp://images.example.org/ file:///etc/passwd
        https://images.example.org:x/ https://[/
        https://user@images.example.org/ https://user:word@images.example.org/
        https://images.example.org@127.0.0.1/ https://@images.example.org/
        https://127.0.0.1/ https://2130706433/ https://0x7f000001/ https://0177.0.0.1/
        https://127.1/ https://1.0x7f/ https://[::1]/ https://[::ffff:127.0.0.1]/
        https://[fe80::1%25eth0]/ https://localhost/ https://images.example.org./
        https://images..example.org/ https://images_example.org/ https:///a.jpg
        https://images.ex\u00e4mple.org/ https://images\uff61example.org/
        https://p\u0131ctures.example.org/ https://IMAGES.EXAMPLE.ORG\u212a/
        https://images.example.org\\@evil.net/ https://images.example.org/\0
    """,
}
REASONS = [(url, reason) for reason, urls in BAD_URLS.items() for url in urls.split()]
REASONS += [("https://images.example.org/ a", "plain ASCII")]
REASONS += [("https://images.example.org/\r\nX: y", "plain ASCII")]
REASONS += [("https://images.example.org/" + "a" * 2048, "2048")]


@pytest.mark.parametrize(("url", "reason"), REASONS)
def test_other_urls_are_refused_with_a_reason(url: str, reason: str) -> None:
    with pytest.raises(UrlRefused, match=reason):
        check_url(url, ALLOWED)


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "*.", "*.com", "example", "127.0.0.1", "::1", "a.*.org", "https://a.org"),
        *("a.org/b", "a.org,", "ex\u00e4mple.org", "a.org:443", "*.*.org"),
    ],
)
def test_an_invalid_host_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="url_hosts"):
        read_hosts(text)


# Fetches over TLS from a server of this test, on an address that only these tests allow.

HOST, OTHER = "images.example.org", "other.example.net"
HERE = "127.0.0.1"
IMAGE = bytes(range(256)) * 40
MAX_BYTES = 100_000
FAILED = "images[0]: no image could be fetched from this URL."
Answer = bytes | list[bytes | float]


class Site:
    """A server at `HERE`, and a fetcher of its images.

    Attributes:
        answers: By path: a whole answer, or pieces with waits between them.
        addresses: By host: what each look-up returns; the last one stays.
        asked: Heads of requests.
        looked_up: Hosts, in the order of the look-ups.
        named: Hosts that TLS handshakes named.
        held: Sizes of the pieces that were kept.
    """

    port = 0

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {"/a.jpg": ok(IMAGE)}
        self.addresses = {HOST: [[HERE]], OTHER: [[HERE]], "a.example.com": [[HERE]]}
        self.asked: list[str] = []
        self.looked_up: list[str] = []
        self.named: list[str | None] = []
        self.held: list[int] = []
        self.fetcher = UrlFetcher(f"{HOST},{OTHER},*.example.com", MAX_BYTES)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head)
            answer = self.answers[head.split()[1]]
            for piece in answer if isinstance(answer, list) else [answer]:
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                else:
                    writer.write(piece)
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        answers = self.addresses[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def url(self, path: str = "/a.jpg", host: str = HOST) -> str:
        return f"https://{host}:{self.port}{path}"

    def hold(self, num_bytes: int) -> None:
        self.held.append(num_bytes)
        if sum(self.held) > MAX_BYTES // 2:
            raise Overloaded("full")

    async def fetch(self, path: str = "/a.jpg", host: str = HOST) -> bytes:
        return await self.fetcher.fetch(self.url(path, host), self.hold, param="images[0]")

    async def refusal(self, path: str, host: str = HOST) -> str:
        with pytest.raises(InvalidRequest) as caught:
            await self.fetch(path, host)
        assert caught.value.param == "images[0]"
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        return caught.value.message


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    ca, made = trustme.CA(), Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(HOST, OTHER).configure_cert(context)
    context.sni_callback = lambda _, name, __: made.named.append(name)
    ca.configure_trust(made.fetcher._context)
    monkeypatch.setattr(url_fetch, "resolve", made.resolve)
    monkeypatch.setattr(url_fetch, "is_public", lambda a: a == HERE or is_public(a))
    server: Any = await asyncio.start_server(made.serve, HERE, 0, ssl=context)
    async with server:
        made.port = server.sockets[0].getsockname()[1]
        monkeypatch.setattr(url_fetch, "HTTPS_PORT", made.port)
        yield made


async def test_an_image_is_fetched_unchanged_without_a_proxy(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await site.fetch() == IMAGE
    head = site.asked[0]
    assert f"Host: {HOST}\r\n" in head
    assert "Accept-Encoding: identity" in head
    assert site.named == [HOST]
    for word in ("cookie", "authorization", "referer"):
        assert word not in head.lower()


async def test_every_redirect_is_resolved_and_checked(site: Site) -> None:
    site.answers |= {
        "/1": redirect("/2"),
        "/2": redirect(site.url("/3", OTHER), 307),
        "/3": redirect(f"//{HOST}:{site.port}/a.jpg", 308),
    }
    assert await site.fetch("/1") == IMAGE
    assert site.looked_up == [HOST, HOST, OTHER, HOST]


@pytest.mark.parametrize(
    "location",
    [
        *words("http://images.example.org/a.jpg https://127.0.0.1/ https://[::1]/ /endless"),
        *words("https://169.254.169.254/latest/meta-data/ https://evil.example.net/"),
        *words("https://images.example.org:22/ https://user:word@images.example.org/"),
        *("file:///etc/passwd", "", "https://[", "\u00e4"),
    ],
)
async def test_a_redirect_to_a_refused_address_fails_without_a_reason(
    site: Site, location: str
) -> None:
    site.answers["/endless"] = redirect(location)
    assert await site.refusal("/endless") == FAILED
    assert len(site.asked) <= 4


async def test_no_secret_of_an_answer_is_logged(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    location = site.url("/a.jpg?signature=word3").replace("https://", "https://user:word1@")
    site.answers["/1"] = redirect(location).replace(b"\r\n", b"\r\nSet-Cookie: word2\r\n", 1)
    await site.refusal("/1")
    assert "a URL was not fetched" in caplog.text
    assert "word" not in caplog.text


async def test_a_name_is_resolved_once_and_the_checked_address_is_dialled(site: Site) -> None:
    site.addresses[HOST] = [[HERE], ["10.0.0.1"]]
    assert await site.fetch() == IMAGE
    assert site.looked_up == [HOST]
    site.answers["/1"] = redirect("/a.jpg")
    site.addresses[HOST] = [[HERE], ["10.0.0.1"]]
    assert await site.refusal("/1") == FAILED, "resolved and checked again"
    for addresses in ([], [HERE, "10.0.0.1"]):
        site.addresses[HOST] = [addresses]
        assert await site.refusal("/a.jpg") == FAILED


async def test_the_certificate_must_have_the_name_of_the_host(site: Site) -> None:
    assert await site.refusal("/a.jpg", "a.example.com") == FAILED
    assert not site.asked


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"x" * (MAX_BYTES + 1)),
        [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 10_000] * 1000],
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
        ok(gzip.compress(bytes(10_000_000)), "Content-Encoding: gzip"),
        b"HTTP/1.1 404 secret\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 302 secret\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 204 secret\r\n\r\n",
        b"SSH-2.0-secret\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_every_failed_answer_has_the_same_message(
    site: Site, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "hold", lambda num_bytes: None)
    site.answers["/b"] = answer
    assert await site.refusal("/b") == FAILED


DROP: tuple[bytes | float, ...] = (b"x", 0.02)
DRIP: Answer = [b"HTTP/1.1 200 OK\r\n\r\n", *DROP * 1000]


@pytest.mark.parametrize("answer", [DRIP, [20.0], [b"HTTP/1.1 200 OK\r\n", 20.0]])
async def test_one_time_limit_covers_the_whole_fetch(
    site: Site, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(url_fetch, "TIME_LIMIT_S", 0.3)
    site.answers["/b"] = answer
    assert await site.refusal("/b") == FAILED


async def test_memory_is_reserved_by_pieces_and_ends_the_fetch_when_full(site: Site) -> None:
    site.answers["/large"] = ok(b"x" * MAX_BYTES)
    with pytest.raises(Overloaded):
        await site.fetch("/large")
    site.held.clear()
    await site.fetch()
    assert sum(site.held) == len(IMAGE)
