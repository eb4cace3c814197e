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
from typing import Final
from urllib.parse import urljoin

import httpcore2

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
LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# At least two labels, the last of which begins with a letter. That excludes IPv4 addresses in all
# spellings (127.0.0.1, 0x7f.1, 2130706433) and IPv6 addresses, which have colons.
HOST: Final = rf"(?:{LABEL}\.)+(?=[a-z]){LABEL}"
HOST_NAME: Final = re.compile(HOST)
# Parsers disagree about blanks, control characters, backslashes and other alphabets.
PLAIN: Final = r"[!$-;=?-\[\]_a-z~]*"
URL: Final = re.compile(
    rf"https://({HOST})(?::(\d{{1,5}}))?((?:[/?]{PLAIN})?)(?:#{PLAIN})?", re.ASCII | re.IGNORECASE
)
MAX_URL_CHARS: Final = 2048
HTTPS_PORT: Final = 443
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
# Called with the number of bytes received; may raise to end the fetch.
Hold = Callable[[int], None]


class UrlRefused(ValueError):
    """Why a URL is not fetched. The caller is told only of the URL that it sent itself."""


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


def check_url(url: str, hosts: Iterable[str]) -> tuple[str, str]:
    """The host of a URL, and its path with the query.

    Raises:
        UrlRefused: It is malformed or not https, or it is not of one of these hosts.
    """
    found = URL.fullmatch(url)
    if found is None or len(url) > MAX_URL_CHARS:
        raise UrlRefused(
            "write https://, the full name of a host (no address, user or password) and a path, "
            f"at most {MAX_URL_CHARS} characters of plain ASCII: percent-encode the path, and give "
            "a host in another alphabet by its xn-- name"
        )
    name, target = found[1].lower(), found[3]
    is_known = any(name.endswith(h[1:]) if h.startswith("*.") else name == h for h in hosts)
    if int(found[2] or HTTPS_PORT) != HTTPS_PORT or not is_known:
        raise UrlRefused("this server does not fetch from that host and port")
    return name, target if target.startswith("/") else f"/{target}"


async def resolve(host: str, port: int) -> list[str]:
    """The numeric addresses of a name, in the order of the system."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


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
            check_url(url, self.hosts)
        except UrlRefused as error:
            raise InvalidRequest(
                f"{param}: {error}.", code="url_not_allowed", param=param
            ) from None
        try:
            async with asyncio.timeout(TIME_LIMIT_S), self._places:
                return await self._follow(url, hold)
        except (ValueError, OSError, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            reason = f"{type(error).__name__}: {error}"
            logger.info("a URL was not fetched", extra={"fields": {"reason": reason}})
        raise InvalidRequest(
            f"{param}: no image could be fetched from this URL.",
            code="url_fetch_failed",
            param=param,
        )

    async def _follow(self, url: str, hold: Hold) -> bytes:
        """Request, and follow redirects, each of which is checked like the first URL."""
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._ask(*check_url(url, self.hosts), hold)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise UrlRefused("too many redirects")

    async def _ask(self, host: str, target: str, hold: Hold) -> bytes | str:
        """The image, or the location of a redirect.

        A name is resolved once. All its addresses are checked and the first that accepts is used,
        so that no second look-up can return another one (DNS rebinding).
        """
        addresses = await resolve(host, HTTPS_PORT)
        failure: Exception = UrlRefused(f"{host} has no address, or a private one: {addresses}")
        for address in addresses if all(map(is_public, addresses)) else ():
            try:
                return await self._ask_at(address, host, target, hold)
            except httpcore2.ConnectError as error:
                failure = error
        raise failure

    async def _ask_at(self, address: str, host: str, target: str, hold: Hold) -> bytes | str:
        url = httpcore2.URL(scheme="https", host=address, port=HTTPS_PORT, target=target)
        headers = (("Host", host), *HEADERS)
        named = {"sni_hostname": host}  # the name that the certificate must have
        async with (
            httpcore2.AsyncConnectionPool(ssl_context=self._context) as connections,
            connections.stream("GET", url, headers=headers, extensions=named) as response,
        ):
            found = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in REDIRECTS and b"location" in found:
                return found[b"location"]
            if response.status != 200:
                raise UrlRefused(f"status {response.status}")
            if found.get(b"content-encoding", "identity").strip().lower() != "identity":
                raise UrlRefused("the body is compressed, which was not requested")
            content = bytearray()
            async for piece in response.aiter_stream():
                if len(content) + len(piece) > self._max_bytes:
                    raise UrlRefused("too many bytes")
                hold(len(piece))
                content += piece
            return bytes(content)
