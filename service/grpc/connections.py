"""Closes gRPC connections: idle ones beyond the limit, and those with answers that are not read.

The core can only refuse new connections, and has no option to close an idle one instead: 1,100
idle connections of one stranger made gRPC unavailable for 48 s. It keeps an answer until it is read
or its connection ends: to cancel its RPC sends nothing, also no status, while the client's window
is full. Python's gRPC does not expose its connections, so they are found among the sockets of the
process.
"""

import asyncio
import math
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from service.grpc.callers import peer_host
from service.machine import PROC, num_descriptors
from service.monitoring.metrics import Metrics

# The core accepts `max_connections` new ones between two checks.
CHECK_S: Final = 0.25
# How long a connection with an unread answer stays open for its other RPCs.
UNREAD_S: Final = 5.0
# A check looks at every descriptor only if so many were opened that the limit may be exceeded, and
# once in this time, since others may have been closed. To look at 1,000 takes 30 ms, in which
# another thread holds Python's lock; next to 1,000 connections all callers waited for it.
RECOUNT_S: Final = 2.0
# The state, and milliseconds since data was last sent and received: places in Linux's `tcp_info`.
TCP_INFO: Final = struct.Struct("=B 43x I 4x I")
# Established, and closed by the client alone. In other states this process has closed it already.
OPEN_STATES: Final = frozenset({1, 8})

Peer = tuple[IPv4Address | IPv6Address, int]


@dataclass(frozen=True, slots=True)
class Connection:
    """An open connection: its descriptor, the client's address, and how long it is idle."""

    descriptor: int
    peer: Peer
    idle_ms: int


class OpenRpcs:
    """RPCs of ours by connection and caller, and answers that their callers do not read.

    RPCs of health and reflection are left out: they need no key, so strangers would keep their
    connections with them. Connections have gRPC's names. Belongs to one event loop.
    """

    def __init__(self) -> None:
        # By connection and host of the caller; none is zero.
        self._num: Counter[tuple[str, str]] = Counter()
        # When the server last gave up on an answer.
        self._unread: dict[tuple[str, str], float] = {}

    def enter(self, peer: str, host: str) -> None:
        """An RPC of a host begins on a connection."""
        self._num[peer, host] += 1

    def leave(self, peer: str, host: str) -> None:
        """Such an RPC ends."""
        self._num[peer, host] -= 1
        if not self._num[peer, host]:
            del self._num[peer, host]

    def give_up(self, peer: str, host: str, now: float) -> None:
        """The server has cancelled such an RPC, whose answer is not read."""
        self._unread[peer, host] = now

    def busy_peers(self) -> set[str]:
        """The connections with RPCs."""
        return {peer for peer, _ in self._num}

    @property
    def num_unread(self) -> int:
        """Callers whose connections are to be closed for unread answers."""
        return len(self._unread)

    def take_unread(self, now: float) -> set[str]:
        """The connections to close now, each once, for answers that are not read.

        One is closed when its caller has no other RPC on it, and at the latest after `UNREAD_S`,
        but not while RPCs of other callers run on it, behind a proxy.
        """
        hosts: dict[str, set[str]] = {peer: set() for peer, _ in self._unread}
        for peer, host in self._num:
            hosts.setdefault(peer, set()).add(host)
        late = now - UNREAD_S
        due = [
            (peer, host)
            for (peer, host), since in self._unread.items()
            if not hosts[peer] or (since < late and hosts[peer] == {host})
        ]
        for one in due:
            del self._unread[one]
        return {peer for peer, _ in due}


@asynccontextmanager
async def closing_connections(
    port: int,
    max_connections: int,
    *,
    rpcs: OpenRpcs,
    metrics: Metrics,
) -> AsyncIterator[None]:
    """Close idle ones beyond the limit, and those with unread answers, while the block runs.

    Args:
        port: The server's port.
        max_connections: Most connections that stay open; the core's own limit is higher.
        rpcs: The RPCs whose clients must not be disconnected, and the answers that are not read.
        metrics: Counts closed connections.
    """

    async def watch() -> None:
        clock = asyncio.get_running_loop().time
        enough, counted = max_connections, -math.inf
        while True:
            await asyncio.sleep(CHECK_S)
            due = rpcs.take_unread(clock())
            if due:
                await asyncio.to_thread(close_peers, port, set(map(parse_peer, due)))
            num_open = num_descriptors()
            is_due = clock() - counted > RECOUNT_S
            if num_open > (max_connections if is_due else enough):
                counted = clock()
                num_left, num_closed = await asyncio.to_thread(
                    close_idle, port, max_connections, rpcs.busy_peers()
                )
                enough = max(num_open - num_closed + max_connections - num_left, max_connections)
                metrics.idle_connections_closed.labels("grpc").inc(num_closed)

    task = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def close_idle(port: int, max_connections: int, busy: Iterable[str]) -> tuple[int, int]:
    """Close idle connections of a port beyond the limit.

    Returns:
        The numbers of those that stay open, and of those that were closed.
    """
    connections = open_connections(port)
    exempt = {parse_peer(peer) for peer in busy}
    chosen = longest_idle(connections, exempt, len(connections) - max_connections)
    num_closed = _shut_down(chosen, port)
    return len(connections) - num_closed, num_closed


def close_peers(port: int, peers: Collection[Peer]) -> int:
    """Close the connections of these clients; how many there were."""
    return _shut_down([one for one in open_connections(port) if one.peer in peers], port)


def _shut_down(chosen: Iterable[Connection], port: int) -> int:
    num_closed = 0
    for connection in chosen:
        with suppress(OSError), _shared(connection.descriptor) as sock:
            # The core may have closed it since, and the descriptor may be of another file.
            if _peer(sock, port) == connection.peer:
                sock.shutdown(socket.SHUT_RDWR)
                num_closed += 1
    return num_closed


def longest_idle(
    connections: Iterable[Connection], exempt: Collection[Peer], num_chosen: int
) -> list[Connection]:
    """Choose connections to close: of the hosts with most of them, those that are idle longest."""
    hosts: Counter[IPv4Address | IPv6Address] = Counter()
    ranked: list[tuple[int, int, Connection]] = []
    for connection in sorted(connections, key=lambda one: one.idle_ms):
        host = connection.peer[0]
        if connection.peer not in exempt:
            hosts[host] += 1
            ranked.append((hosts[host], connection.idle_ms, connection))
    ranked.sort(key=lambda row: row[:2], reverse=True)
    return [connection for *_, connection in ranked[: max(0, num_chosen)]]


def open_connections(port: int) -> list[Connection]:
    """The open connections of this process to one of its ports, without those it has shut down.

    The core closes the descriptor of such a one a little later, on a busy machine after the next
    check.
    """
    found = []
    for name in os.listdir(PROC / "self" / "fd"):
        # Most descriptors are no sockets, and some are closed by now.
        with suppress(OSError), _shared(int(name)) as sock:
            peer = _peer(sock, port)
            if peer is not None:
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
                state, *idle_ms = TCP_INFO.unpack(info)
                if state in OPEN_STATES:
                    found.append(Connection(int(name), peer, min(idle_ms)))
    return found


def parse_peer(peer: str) -> Peer:
    """The address in gRPC's name of a client."""
    return _address(peer_host(peer)), int(peer.rpartition(":")[2])


@contextmanager
def _shared(descriptor: int) -> Iterator[socket.socket]:
    """A socket of the process by a descriptor of its own, which stays the same socket's."""
    copy = os.dup(descriptor)
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with sock:
        yield sock


def _peer(sock: socket.socket, port: int) -> Peer | None:
    """The client of a connection to this port; None for any other socket.

    Raises:
        OSError: The socket is not connected.
    """
    if sock.family not in {socket.AF_INET, socket.AF_INET6} or sock.getsockname()[1] != port:
        return None
    host, peer_port = sock.getpeername()[:2]
    return _address(host), peer_port


def _address(host: str) -> IPv4Address | IPv6Address:
    address = ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
