"""Only public addresses of allowed hosts are fetched from, within limits."""

import asyncio
import gzip
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import trustme

from service.errors import InvalidRequest, Overloaded
from service.safety.url_fetch import (
    PinnedBackend,
    Target,
    UrlFetcher,
    UrlPolicy,
    UrlRefused,
    is_public,
    url_of,
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


@pytest.mark.parametrize("address", [*PUBLIC, *REFUSED, ""])
def test_only_public_addresses_pass_however_they_are_written(address: str) -> None:
    assert is_public(address) == (address in PUBLIC)


# URLs that are fetched, and tricks that are refused.

POLICY = UrlPolicy.from_text("images.example.org, *.cdn.example.com")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://images.example.org/a.jpg", ("images.example.org", "/a.jpg")),
        ("https://images.example.org", ("images.example.org", "/")),
        ("HTTPS://Images.Example.ORG:443/a?b=c#d", ("images.example.org", "/a?b=c")),
        ("https://a.cdn.example.com/%C3%A4", ("a.cdn.example.com", "/%C3%A4")),
        ("https://a.b.cdn.example.com/", ("a.b.cdn.example.com", "/")),
    ],
)
def test_urls_of_allowed_hosts_are_read(url: str, target: tuple[str, str]) -> None:
    host, path = target
    assert POLICY.target_of(url) == Target(host, 443, path)


BAD_URLS = {
    "only https": "http://images.example.org/ ftp://images.example.org/ file:///etc/passwd",
    "does not fetch from": """
        https://other.example.org/ https://images.example.org.evil.net/
        https://evilimages.example.org/ https://cdn.example.com/ https://evilcdn.example.com/
        https://images.example.org:8443/ https://images.example.org:22/
    """,
    "not a URL": "https://images.example.org:x/ https://images.example.org:99999/ https://[/",
    "user name": """
        https://user@images.example.org/ https://user:word@images.example.org/
        https://images.example.org@127.0.0.1/ https://@images.example.org/
    """,
    "full name": """
        https://127.0.0.1/ https://2130706433/ https://0x7f000001/ https://0177.0.0.1/
        https://127.1/ https://1.0x7f/ https://[::1]/ https://[::ffff:127.0.0.1]/
        https://[fe80::1%25eth0]/ https://localhost/ https://images.example.org./
        https://images..example.org/ https://images_example.org/ https:///a.jpg
    """,
    "plain ASCII": """
        https://images.ex\u00e4mple.org/ https://images\uff61example.org/
        https://p\u0131ctures.example.org/ https://IMAGES.EXAMPLE.ORG\u212a/
        https://images.example.org\\@evil.net/ https://images.example.org/\0
    """,
}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        *[(url, words) for words, urls in BAD_URLS.items() for url in urls.split()],
        ("https://images\u3002example.org/", "plain ASCII"),
        ("https://images.example.org/ a", "plain ASCII"),
        ("https://images.example.org/\r\nX: y", "plain ASCII"),
        ("https://images.example.org/" + "a" * 2048, "2048"),
    ],
)
def test_other_urls_are_refused_with_a_reason(url: str, words: str) -> None:
    with pytest.raises(UrlRefused, match=words):
        POLICY.target_of(url)


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "*.", "*.com", "example", "127.0.0.1", "::1", "a.*.org", "https://a.org"),
        *("a.org/b", "a.org,", "ex\u00e4mple.org", "a.org:443", "*.*.org"),
    ],
)
def test_an_invalid_host_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="url_hosts"):
        UrlPolicy.from_text(text)


URLS = ["https://a.org/b", "http://a", "ftp://a", "x://"]


@pytest.mark.parametrize(
    "text", [*URLS, "", "iVBORw0KGgo=", "data:image/png;base64,iVBO", "data:a://b"]
)
def test_urls_are_distinguished_from_encoded_images(text: str) -> None:
    assert url_of(text) == (text if text in URLS else None)


# Fetches over TLS from servers of this test: redirects, refusals, and one message for all failures.
#
# The servers listen on 127.0.0.1, which only these tests allow.

HOST, OTHER = "images.example.org", "other.example.net"
HERE = "127.0.0.1"
IMAGE = bytes(range(256)) * 40
MAX_BYTES = 100_000
FAILED = "images[0]: no image could be fetched from this URL."


class Site:
    """What the server at `HERE` answers: by path, a whole answer or pieces with waits between."""

    def __init__(self) -> None:
        self.port = 0
        self.answers: dict[str, bytes | list[bytes | float]] = {"/a.jpg": ok(IMAGE)}
        self.asked: list[str] = []
        self.names: list[str | None] = []

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

    def url(self, path: str = "/a.jpg", host: str = HOST) -> str:
        return f"https://{host}:{self.port}{path}"


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


class Names:
    """A resolver of this test: a list of answers for each name, the last of which stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {HOST: [[HERE]], OTHER: [[HERE]]}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def site(ca: trustme.CA) -> AsyncIterator[Site]:
    made = Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(HOST, OTHER).configure_cert(context)
    context.sni_callback = lambda _, name, __: made.names.append(name)
    server = await asyncio.start_server(made.serve, HERE, 0, ssl=context)
    async with server:
        made.port = server.sockets[0].getsockname()[1]
        yield made


@pytest.fixture
def names() -> Names:
    return Names()


Fetch = Callable[[str], Awaitable[bytes]]


@pytest.fixture
def make_fetch(site: Site, names: Names, ca: trustme.CA) -> Callable[..., Fetch]:
    """A fetch from the site's hosts and port, with a small time-out."""

    def make(timeout_s: float = 20.0, hold: Callable[[int], None] = lambda _: None) -> Fetch:
        context = ssl.create_default_context()
        ca.configure_trust(context)
        fetcher = UrlFetcher(
            UrlPolicy(hosts=(HOST, OTHER), ports=frozenset({site.port})),
            MAX_BYTES,
            timeout_s=timeout_s,
            backend=PinnedBackend(names, lambda a: a == HERE or is_public(a)),
            context=context,
        )
        return lambda url: fetcher.fetch(url, hold, param="images[0]")

    return make


@pytest.fixture
def fetch(make_fetch: Callable[..., Fetch]) -> Fetch:
    return make_fetch()


async def refusal(fetch: Fetch, url: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await fetch(url)
    assert caught.value.param == "images[0]"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.message


async def test_an_image_is_fetched_unchanged_and_the_request_names_its_host(
    fetch: Fetch, site: Site
) -> None:
    assert await fetch(site.url("/a.jpg")) == IMAGE
    head = site.asked[0]
    assert f"Host: {HOST}:{site.port}\r\n" in head
    assert "Accept-Encoding: identity" in head
    assert site.names == [HOST]
    for word in ("cookie", "authorization", "referer"):
        assert word not in head.lower()


async def test_no_proxy_of_the_environment_is_used(
    fetch: Fetch, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await fetch(site.url()) == IMAGE


async def test_every_redirect_is_resolved_and_checked(
    fetch: Fetch, site: Site, names: Names
) -> None:
    site.answers |= {
        "/1": redirect("/2"),
        "/2": redirect(site.url("/3", OTHER), 307),
        "/3": redirect(f"//{HOST}:{site.port}/a.jpg", 308),
    }
    assert await fetch(site.url("/1")) == IMAGE
    assert names.asked == [HOST, HOST, OTHER, HOST], "every hop is resolved and checked"


@pytest.mark.parametrize(
    "location",
    [
        *words("http://images.example.org/a.jpg https://127.0.0.1/ https://[::1]/ /endless"),
        *words("https://169.254.169.254/latest/meta-data/ https://evil.example.net/"),
        *words("https://images.example.org:22/ https://user:word@images.example.org/"),
        *("file:///etc/passwd", "gopher://images.example.org/", "", "https://[", "\u00e4"),
    ],
)
async def test_a_redirect_to_a_refused_address_fails_without_a_reason(
    fetch: Fetch, site: Site, location: str
) -> None:
    site.answers["/endless"] = redirect(location)
    assert await refusal(fetch, site.url("/endless")) == FAILED
    assert len(site.asked) <= 4


async def test_no_secret_of_an_answer_is_logged(
    fetch: Fetch, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    location = site.url("/a.jpg?signature=word3").replace("https://", "https://user:word1@")
    site.answers["/1"] = redirect(location).replace(b"\r\n", b"\r\nSet-Cookie: word2\r\n", 1)
    await refusal(fetch, site.url("/1"))
    assert "a URL was not fetched" in caplog.text
    assert "word" not in caplog.text


async def test_a_name_is_resolved_once_and_the_checked_address_is_dialled(
    fetch: Fetch, site: Site, names: Names
) -> None:
    names.answers[HOST] = [[HERE], ["10.0.0.1"]]
    assert await fetch(site.url()) == IMAGE
    assert names.asked == [HOST]
    site.answers["/1"] = redirect("/a.jpg")
    names.answers[HOST] = [[HERE], ["10.0.0.1"]]
    assert await refusal(fetch, site.url("/1")) == FAILED, "resolved and checked again"


async def test_the_certificate_must_have_the_name_of_the_host(
    site: Site, names: Names, ca: trustme.CA
) -> None:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    policy = UrlPolicy(hosts=("*.example.com",), ports=frozenset({site.port}))
    names.answers["a.example.com"] = [[HERE]]
    backend = PinnedBackend(names, lambda _: True)
    fetcher = UrlFetcher(policy, MAX_BYTES, backend=backend, context=context)
    with pytest.raises(InvalidRequest, match="no image could be fetched"):
        await fetcher.fetch(site.url(host="a.example.com"), lambda _: None, param="images[0]")
    assert not site.asked


BOMB = gzip.compress(bytes(10_000_000))


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"x" * (MAX_BYTES + 1)),
        [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 10_000] * 1000],
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
        ok(BOMB, "Content-Encoding: gzip"),
        ok(gzip.compress(IMAGE), "Content-Encoding: gzip"),
        b"HTTP/1.1 404 secret\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 500 secret\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 302 secret\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 204 secret\r\n\r\n",
        b"SSH-2.0-secret\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_every_failed_answer_has_the_same_message(
    fetch: Fetch, site: Site, answer: bytes | list[bytes | float]
) -> None:
    site.answers["/b"] = answer
    assert await refusal(fetch, site.url("/b")) == FAILED


def drip() -> Iterator[bytes | float]:
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    for _ in range(1000):
        yield b"x"
        yield 0.02


@pytest.mark.parametrize("answer", [list(drip()), [20.0], [b"HTTP/1.1 200 OK\r\n", 20.0]])
async def test_one_time_limit_covers_the_whole_fetch(
    make_fetch: Callable[..., Fetch], site: Site, answer: list[bytes | float]
) -> None:
    site.answers["/b"] = answer
    assert await refusal(make_fetch(timeout_s=0.3), site.url("/b")) == FAILED


async def test_memory_is_reserved_by_pieces_and_ends_the_fetch_when_full(
    make_fetch: Callable[..., Fetch], site: Site
) -> None:
    held: list[int] = []

    def hold(num_bytes: int) -> None:
        held.append(num_bytes)
        if sum(held) > 5000:
            raise Overloaded("full")

    with pytest.raises(Overloaded):
        await make_fetch(hold=hold)(site.url())
    held.clear()
    site.answers["/small"] = ok(b"x" * 5000)
    await make_fetch(hold=hold)(site.url("/small"))
    assert sum(held) == 5000
