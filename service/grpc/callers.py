"""The context of an RPC that a trusted proxy forwards."""

from typing import Any
from urllib.parse import unquote

from service.safety.proxies import FORWARDED_FOR, TrustedProxies


def peer_host(peer: str) -> str:
    """The host in gRPC's name of a client, such as `ipv6:%5B::1%5D:50000`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


class ForwardedContext:
    """A context whose peer is the caller, and which is the proxy's otherwise.

    The peer's port stays that of the proxy's connection. So what is counted by connection is
    counted by caller and connection, and no caller is refused for another one's RPCs.
    """

    def __init__(self, context: Any, host: str) -> None:
        port = context.peer().rpartition(":")[2]
        self._context = context
        self._peer = f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def peer(self) -> str:
        """GRPC's name of the caller."""
        return self._peer

    def __getattr__(self, name: str) -> Any:
        """Everything else is the proxy's."""
        return getattr(self._context, name)


def caller_of(context: Any, proxies: TrustedProxies) -> tuple[Any, str]:
    """The context of an RPC with the caller as its peer, and the caller's host."""
    metadata = context.invocation_metadata
    peer = peer_host(context.peer())
    host = proxies.host_of(
        peer, (value for name, value in metadata() or () if name == FORWARDED_FOR)
    )
    return (context if host == peer else ForwardedContext(context, host)), host
