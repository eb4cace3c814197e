"""Images fetched by URL, safe against server-side request forgery.

The setting allows host names, but connections go to addresses. The owner of a name's DNS chooses
its addresses and may choose a cloud's metadata server, so every address must be public.
"""

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpcore2
from httpcore2 import AsyncNetworkBackend, AsyncNetworkStream

from service.errors import InvalidRequest

logger = logging.getLogger(__name__)
# At DEBUG the library logs the headers of every answer: cookies, and the addresses of redirects
# with their passwords and signatures.
logging.getLogger("httpcore2").setLevel(logging.INFO)
# Global for (some versions of) Python's `ipaddress`, yet not hosts to fetch from.
REFUSED_V4: Final = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments; some clouds' own services
    IPv4Network("168.63.129.16/32"),  # Azure's own services inside every virtual machine
    IPv4Network("192.88.99.0/24"),  # relays from IPv4 to IPv6, withdrawn by RFC 7526
)
# All addresses assigned to hosts. It excludes loopback, link-local, unique local, IPv4-mapped
# (::ffff:0:0/96), IPv4-compatible (::/96) and NAT64 addresses (64:ff9b::/96, 64:ff9b:1::/48).
GLOBAL_V6: Final = IPv6Network("2000::/3")
REFUSED_V6: Final = (
    IPv6Network("2001::/23"),  # protocol assignments; Teredo's relays to IPv4 addresses
    IPv6Network("2002::/16"),  # 6to4: relays to IPv4 addresses
    IPv6Network("3fff::/20"),  # documentation
)


def is_public(text: str) -> bool:
    """Whether a numeric address is a public host."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in REFUSED_V4)
    return address in GLOBAL_V6 and not any(address in network for network in REFUSED_V6)


MAX_URL_CHARS: Final = 2048
HTTPS_PORT: Final = 443
LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# At least two labels, the last of which begins with a letter. That excludes IPv4 addresses in all
# spellings (127.0.0.1, 0x7f.1, 2130706433) and IPv6 addresses, which have colons.
HOST_NAME: Final = re.compile(rf"(?:{LABEL}\.)+(?=[a-z]){LABEL}")
# Parsers disagree about anything else: blanks, control characters, backslashes, other alphabets.
PLAIN_URL: Final = re.compile(r"[!#-;=?-\[\]_a-z~]+")
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS: Final = 3
MAX_AT_ONCE: Final = 16
TIME_LIMIT_S: Final = 10.0
HEADERS: Final = (
    ("Accept", "image/*"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "tipserve"),
    ("Connection", "close"),
)
HTTP_ERRORS: Final = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
)
# Called with the number of bytes received; may raise to end the fetch.
Hold = Callable[[int], None]


class UrlRefused(Exception):
    """Why a URL is not fetched. The caller is told only of the URL that it sent itself."""


def url_of(text: str) -> str | None:
    """The text if it is a URL, `data:` excepted; base64 never looks like one."""
    return text if "://" in text[:32] and not text.startswith("data:") else None


def read_hosts(text: str) -> tuple[str, ...]:
    """The hosts of the setting, separated by commas: names, or `*.name` for all names below it.

    Raises:
        ValueError: A name is invalid.
    """
    hosts = tuple(name.strip().lower() for name in text.split(","))
    for host in hosts:
        if not HOST_NAME.fullmatch(host.removeprefix("*.")):
            raise ValueError(
                f"url_hosts: {host!r} is no host; write full names such as images.example.org, or "
                "*.example.org for all below it"
            )
    return hosts


def check_url(url: str, hosts: Iterable[str]) -> httpcore2.URL:
    """Parse a URL, and check that it is of one of these hosts.

    Raises:
        UrlRefused: It is malformed, not https, or its host or port is not allowed.
    """
    if len(url) > MAX_URL_CHARS:
        raise UrlRefused(f"a URL has at most {MAX_URL_CHARS} characters")
    if not PLAIN_URL.fullmatch(url):
        raise UrlRefused(
            "a URL is written in plain ASCII: percent-encode its path, and give a host in "
            "another alphabet by its xn-- name"
        )
    try:
        parts = urlsplit(url)
        port = parts.port or HTTPS_PORT
    except ValueError:
        raise UrlRefused("this is not a URL") from None
    if parts.scheme != "https":
        raise UrlRefused("only https:// is fetched")
    if "@" in parts.netloc:
        raise UrlRefused("a URL with a user name or password is not fetched")
    name = (parts.hostname or "").lower()
    if not HOST_NAME.fullmatch(name):
        raise UrlRefused("a URL needs the full name of its host, not an address")
    is_known = any(name.endswith(h[1:]) if h.startswith("*.") else name == h for h in hosts)
    if port != HTTPS_PORT or not is_known:
        raise UrlRefused("this server does not fetch from that host and port")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return httpcore2.URL(scheme="https", host=name, port=port, target=target)


async def resolve(host: str, port: int) -> list[str]:
    """The numeric addresses of a name, in the order of the system."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class PinnedBackend(AsyncNetworkBackend):
    """Resolves a name once, checks every address, and connects to the first that accepts.

    The check is part of connecting, so that no second look-up can return another address (DNS
    rebinding). TLS and the Host header still use the name.
    """

    def __init__(self) -> None:
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(  # noqa: PLR0917 - as the library calls it
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        """Connect.

        Raises:
            ConnectError: No address accepts the connection, or one of them is not public.
        """
        try:
            addresses = await resolve(host, port)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        failure = httpcore2.ConnectError(f"{host} has no address, or a private one: {addresses}")
        if not all(map(is_public, addresses)):
            raise failure
        for address in addresses:
            try:
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore2.ConnectError as error:
                failure = error
        raise failure


class UrlFetcher:
    """Fetches images of at most so many bytes from allowed hosts. Of one event loop.

    All failures give the same error, so that callers learn nothing about the network behind a URL.
    The log has the reason under the request id.

    Attributes:
        hosts: Names, and `*.name` for all names below it.
    """

    def __init__(self, hosts: str, max_bytes: int) -> None:
        """Read the setting `url_hosts`.

        Raises:
            ValueError: A name is invalid.
        """
        self.hosts, self._max_bytes = read_hosts(hosts), max_bytes
        self._context = ssl.create_default_context()
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def fetch(self, url: str, hold: Hold, *, param: str) -> bytes:
        """The bytes behind a URL.

        Args:
            url: From the request.
            hold: Called with the length of each piece before it is kept.
            param: The request field of the URL.

        Raises:
            InvalidRequest: The URL is not allowed, or no image could be fetched.
        """
        try:
            target = check_url(url, self.hosts)
        except UrlRefused as error:
            raise InvalidRequest(
                f"{param}: {error}.", code="url_not_allowed", param=param
            ) from None
        try:
            async with asyncio.timeout(TIME_LIMIT_S), self._places:
                return await self._follow(target, url, hold)
        except (UrlRefused, TimeoutError, *HTTP_ERRORS) as error:
            reason = f"{type(error).__name__}: {error}"
            logger.info("a URL was not fetched", extra={"fields": {"reason": reason}})
        raise InvalidRequest(
            f"{param}: no image could be fetched from this URL.",
            code="url_fetch_failed",
            param=param,
        )

    async def _follow(self, target: httpcore2.URL, url: str, hold: Hold) -> bytes:
        """Request, and follow redirects, each of which is checked like the first URL."""
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._ask(target, hold)
            if isinstance(found, bytes):
                return found
            try:
                url = urljoin(url, found)
            except ValueError:
                raise UrlRefused("the redirect is not to a URL") from None
            target = check_url(url, self.hosts)
        raise UrlRefused("too many redirects")

    async def _ask(self, url: httpcore2.URL, hold: Hold) -> bytes | str:
        """Send one request on a new connection; returns the image, or the redirect's location."""
        async with (
            httpcore2.AsyncConnectionPool(
                ssl_context=self._context, network_backend=PinnedBackend(), max_connections=1
            ) as connections,
            connections.stream("GET", url, headers=HEADERS) as response,
        ):
            headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in REDIRECTS and b"location" in headers:
                return headers[b"location"]
            if response.status != 200:
                raise UrlRefused(f"status {response.status}")
            if headers.get(b"content-encoding", "identity").strip().lower() != "identity":
                raise UrlRefused("the body is compressed, which was not requested")
            content = bytearray()
            async for piece in response.aiter_stream():
                if len(content) + len(piece) > self._max_bytes:
                    raise UrlRefused("too many bytes")
                hold(len(piece))
                content += piece
            return bytes(content)
