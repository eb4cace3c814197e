"""What a URL must look like to be fetched at all; nothing is asked of the network here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

MAX_URL_CHARS: Final = 2048
HTTPS_PORT: Final = 443
LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# At least two labels, of which the last begins with a letter: an IPv4 address in any of its
# spellings (127.0.0.1, 0x7f.1, 2130706433) does not, and an IPv6 address has colons.
HOST_NAME: Final = re.compile(rf"(?:{LABEL}\.)+(?=[a-z]){LABEL}")
# Parsers disagree about anything else: blanks, control characters, backslashes, other alphabets.
PLAIN_URL: Final = re.compile(r"[!#-;=?-\[\]_a-z~]+")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to go for one URL: host and port, and path with query."""

    host: str
    port: int
    path: str


class UrlRefused(ValueError):
    """The URL is not one to fetch; the text says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlPolicy:
    """Whom to ask.

    Attributes:
        hosts: Exact names, or `*.name` for all names below it.
        ports: Of these hosts.
    """

    hosts: tuple[str, ...]
    ports: frozenset[int] = frozenset({HTTPS_PORT})

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read the setting: names with commas between them.

        Raises:
            ValueError: One of them is no name.
        """
        return cls(hosts=tuple(map(_checked_pattern, text.split(","))))

    def target_of(self, url: str) -> Target:
        """Read a URL, and refuse what is not allowed.

        Raises:
            UrlRefused: It is malformed, not https, or of another host or port.
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
        host = (parts.hostname or "").lower()
        if not HOST_NAME.fullmatch(host):
            raise UrlRefused("a URL needs the full name of its host, not an address")
        if port not in self.ports or not _is_among(host, self.hosts):
            raise UrlRefused("this server does not fetch from that host and port")
        query = f"?{parts.query}" if parts.query else ""
        return Target(host, port, (parts.path or "/") + query)


def url_of(text: str) -> str | None:
    """The text where it is a URL of any kind but `data:`, which base64 never looks like."""
    return text if "://" in text[:32] and not text.startswith("data:") else None


def _is_among(host: str, patterns: Sequence[str]) -> bool:
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
        for pattern in patterns
    )


def _checked_pattern(text: str) -> str:
    pattern = text.strip().lower()
    name = pattern.removeprefix("*.")
    if not HOST_NAME.fullmatch(name):
        raise ValueError(
            f"url_hosts: {text.strip()!r} is no host; write full names such as "
            "images.example.org, or *.example.org for all below it"
        )
    return pattern
