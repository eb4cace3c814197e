"""The address of a caller behind trusted proxies, by the header `x-forwarded-for`."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

FORWARDED_FOR: Final = "x-forwarded-for"


class TrustedProxies:
    """Proxies whose word on their callers is taken; any other peer may write what it likes.

    Every proxy appends the address of its own peer. So the last address that is no trusted proxy's
    is the last that a trusted one has seen, and what stands before it is the caller's text.
    uvicorn's middleware takes any text for a host there, and is for REST only.
    """

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        self._networks = tuple(networks)

    def host_of(self, peer: str, forwarded: Iterable[str]) -> str:
        """The host of a request's caller.

        Args:
            peer: The host that the connection comes from.
            forwarded: Values of `x-forwarded-for`, in their order.

        Returns:
            The last address that is not a trusted proxy's, or the first if all are; `peer` if it is
            no trusted proxy, or if the values are malformed.
        """
        if not self._networks or not self._trusts(_parsed(peer)):
            return peer
        host = peer
        for text in reversed(",".join(forwarded).split(",")):
            address = _parsed(text.strip())
            if address is None:
                return peer
            host = str(address)
            if not self._trusts(address):
                break
        return host

    def _trusts(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An address, perhaps with a port, which some proxies append."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
