"""uvicorn, and how it is left: no request that has reached it is dropped.

From the goodbye on every answer carries `Connection: close`, so that callers go elsewhere with
their next request instead of meeting a closing connection. Then nobody new is let in, and a
connection that nobody has used since is closed last, when nothing waits in it.
"""

import asyncio
import fcntl
import math
import socket
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn

from service.rest.connection import CallMiddleware
from service.rest.listener import wait_until_all_are_taken
from service.rest.protocol import BoundedProtocol, ConnectionLimits, bounded_protocol
from service.safety.protection import Protection

# How long a connection that is idle may still be used once newcomers are turned away.
IDLE_LINGER_S: Final = 0.5
POLL_S: Final = 0.01


class HttpServer(uvicorn.Server):
    """uvicorn, with signals left to `Server`: uvicorn itself would end the process by them."""

    def __init__(self, app: CallMiddleware, protection: Protection, *, write_grace_s: int) -> None:
        self._protocol = bounded_protocol(connection_limits(protection))
        super().__init__(http_config(app, protection, self._protocol, write_grace_s))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    def say_goodbye(self) -> None:
        """Answer whatever comes, and close each connection after its next answer."""
        self._protocol.is_leaving = True
        for connection in self._connections():
            connection.close_after_answer()

    async def let_go(self, listening: socket.socket, limit_s: float) -> bool:
        """Let nobody new in and wait until everybody has gone.

        Returns:
            False where some were still there when the time was over.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        await wait_until_all_are_taken(listening)
        for server in self.servers:
            server.close()
        listening.close()
        linger_until = min(until, loop.time() + IDLE_LINGER_S)
        # Once round the loop first: a connection just taken is not known before.
        await asyncio.sleep(POLL_S)
        while (there := self._connections()) and loop.time() < until:
            if loop.time() >= linger_until:
                close_idle(there)
            await asyncio.sleep(POLL_S)
        return not there

    def _connections(self) -> list[BoundedProtocol]:
        known: Any = self.server_state.connections
        return [c for c in known if isinstance(c, BoundedProtocol)]


def close_idle(connections: Iterable[BoundedProtocol]) -> None:
    """Close those that nobody uses, unless a request has come that was not read yet."""
    for connection in connections:
        transport = connection.transport
        if connection.is_idle and not transport.is_closing() and not num_waiting_bytes(transport):
            transport.close()


def num_waiting_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the peer has sent and nobody has read."""
    held = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(held, sys.byteorder)


def connection_limits(protection: Protection) -> ConnectionLimits:
    """What the settings say of one connection."""
    return ConnectionLimits(
        max_connections=protection.max_connections,
        timeout_s=protection.client_timeout_s,
        bytes_per_s=protection.client_bytes_per_s,
        keep_alive_s=protection.keep_alive_s,
        metrics=protection.metrics,
    )


def http_config(
    app: CallMiddleware,
    protection: Protection,
    protocol: type[BoundedProtocol],
    write_grace_s: int,
) -> uvicorn.Config:
    """REST as uvicorn serves it."""
    tls = protection.tls
    return uvicorn.Config(
        app,
        http=protocol,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=math.ceil(protection.keep_alive_s),
        timeout_graceful_shutdown=write_grace_s,
        ssl_context_factory=None if tls is None else lambda *_: tls.http_context(),
    )
