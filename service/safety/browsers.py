"""Refuses what a web page makes its visitor's browser send to a server without keys.

A page of any origin may send requests to this machine's addresses. After DNS rebinding it may also
read the answers, under a host name of its own. Browsers say where a request comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from service.errors import Forbidden
from service.settings import Settings, is_loopback

DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class BrowserRules:
    """Which requests of browsers are served.

    Attributes:
        is_loopback_only: Whether `Host` must be a name of loopback.
        origins: Other origins whose pages may send requests.
    """

    is_loopback_only: bool = False
    origins: frozenset[str] = frozenset()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The rules of the settings.

        A server on loopback without keys and proxies has names of loopback only, against DNS
        rebinding; health checks and the server's own pages accept every host.
        """
        host, _ = settings.address
        is_open = settings.has_keys or settings.trusted_proxies or not is_loopback(host)
        return cls(not is_open, split_names(settings.cors_origins))

    def check(self, headers: Mapping[bytes, str]) -> None:
        """Check the host of a request, and the origin of the page that sent it, if any.

        Args:
            headers: By name, in lower case.

        Raises:
            Forbidden: The page is of another origin, or the host is not allowed.
        """
        host = headers.get(b"host", "").strip().lower()
        name = host_name(host)
        if self.is_loopback_only and name and not is_loopback(name):
            raise Forbidden(
                f"The host {name[:100]!r} is not allowed; use localhost. Behind a proxy, name its "
                "address in the server's setting trusted_proxies, or set API keys.",
                code="host_not_allowed",
                param="Host",
            )
        site = headers.get(b"sec-fetch-site", "")
        origin = headers.get(b"origin")
        if origin is not None and origin.strip().lower() in self.origins:
            return
        is_own = origin is None or site == "same-origin" or is_same(origin, host)
        if site == "cross-site" or not is_own:
            raise Forbidden(
                "Requests of web pages of another origin are refused. List the origin in the "
                "server's setting cors_origins, or remove Origin and Sec-Fetch-Site in the gateway "
                "that serves the page.",
                code="cross_origin",
                param="Origin",
            )


def split_names(names: str | None) -> frozenset[str]:
    """The names of a list separated by commas, in lower case."""
    return frozenset(name.strip().lower() for name in (names or "").split(",")) - {""}


def host_name(host: str) -> str:
    """A `Host` header without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def is_same(origin: str, host: str) -> bool:
    """Whether an `Origin` has the host and the port of `Host`; `null` has none."""
    scheme, _, authority = origin.strip().lower().partition("://")
    port = DEFAULT_PORTS.get(scheme, "")
    return bool(authority) and authority.removesuffix(port) == host.removesuffix(port)
