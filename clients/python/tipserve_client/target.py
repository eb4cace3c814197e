"""Where a client connects to, and by what it shows who it is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM, for `https://` and `grpcs://`.

    Attributes:
        ca: Authorities that the server's certificate may come from; None trusts the system's (with
            gRPC those that it brings).
        cert: The client's own certificate, where the server asks for one.
        key: The private key of that.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server.

    Attributes:
        protocol: Which one is spoken.
        host: Name or address.
        port: Its port.
        is_secure: Whether TLS is spoken.
        path: What every HTTP path begins with.
        tls: Its files.
        api_key: Sent with every request.
        priority: Of every request; 1 goes first.
    """

    protocol: Literal["http", "grpc"]
    host: str
    port: int
    is_secure: bool
    path: str = ""
    tls: Tls = Tls()
    api_key: str | None = field(default=None, repr=False)
    priority: Literal[1, 2, 3] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What goes with every request, as headers or metadata."""
        given = {"x-api-key": self.api_key, "x-request-priority": self.priority}
        return {name: str(value) for name, value in given.items() if value is not None}

    @property
    def address(self) -> str:
        """Host and port as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """For HTTP."""
        return f"http{'s' if self.is_secure else ''}://{self.address}{self.path}"


def read_target(
    url: str,
    *,
    api_key: str | None = None,
    tls: Tls | None = None,
    priority: Literal[1, 2, 3] | None = None,
) -> Target:
    """A server from its URL.

    Raises:
        ValueError: The URL is of no kind that is known, TLS files come with one in the clear, or
            the key cannot be sent.
    """
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(
            f"{url!r}: write http://host:8000, https://host, grpc://host:8001 or grpcs://host:8001"
        )
    is_grpc = parts.scheme.startswith("grpc")
    is_secure = parts.scheme.endswith("s")
    if parts.query or parts.fragment or parts.username or (is_grpc and parts.path.strip("/")):
        raise ValueError(f"{url!r}: give host and port only, and the key as api_key")
    if tls is not None and not is_secure:
        raise ValueError(f"{url!r} is in the clear: TLS files need https:// or grpcs://")
    if tls is not None and (tls.cert is None) != (tls.key is None):
        raise ValueError("a client's certificate needs its key: set cert and key, or neither")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        # Without the key itself: errors are logged.
        raise ValueError("api_key: give visible ASCII characters; a key from a file may end a line")
    return Target(
        protocol="grpc" if is_grpc else "http",
        host=parts.hostname,
        port=parts.port or DEFAULT_PORTS[parts.scheme],
        is_secure=is_secure,
        path=parts.path.rstrip("/"),
        tls=tls or Tls(),
        api_key=api_key,
        priority=priority,
    )
