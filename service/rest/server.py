"""REST's server: uvicorn without its signal handlers. Strangers come through a proxy."""

import asyncio
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.rest.middleware import WATCH
from service.safety.protection import Protection

BACKLOG: Final = 2048
# Longer than the idle time-out of a proxy in front: the one shipped has 60 s.
KEEP_ALIVE_S: Final = 75


class HttpServer(uvicorn.Server):
    """uvicorn; `service.server` handles signals for both transports."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `service.server`."""
        yield


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which also says at once that the client has left, and writes less often.

    A task that waits in `receive` for the client to leave takes 5 % of a request that computes
    nothing, and so does each system call.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with a transport that holds heads of answers back."""
        self._presence = Presence()
        super().connection_made(cast("asyncio.Transport", HeadHolder(transport, self)))

    def on_message_begin(self) -> None:
        """Add `WATCH` to the scope of the request."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = {WATCH: self._presence.watch}

    def eof_received(self) -> None:
        """The client has left: uvicorn closes the connection now."""
        self._presence.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by either side."""
        super().connection_lost(exc)
        self._presence.end()


class Presence:
    """Whether a client is still there. Without its connection, whose requests refer to this."""

    def __init__(self) -> None:
        self._on_end: Callable[[], None] | None = None
        self._has_ended = False

    def watch(self, on_end: Callable[[], None] | None) -> None:
        """Call this once the client has left; None calls nothing."""
        self._on_end = on_end
        if self._has_ended:
            self.end()

    def end(self) -> None:
        """The client has left."""
        self._has_ended = True
        if self._on_end is not None:
            self._on_end()


class HeadHolder:
    """A transport that writes the head of an answer together with the beginning of its body."""

    def __init__(self, transport: asyncio.Transport, protocol: HttpToolsProtocol) -> None:
        self._transport = transport
        # Both refer to this transport: of the request only its scope is kept.
        self._protocol = weakref.proxy(protocol)
        self._begun: object = None
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        """Write, but hold back the first write of an answer that has begun: its head.

        Of pipelined requests only the head of the last one is recognised. An answer to HEAD has no
        second write, and neither has the 400 of a first request that is not HTTP: it has no cycle.
        """
        head, self._head = self._head, None
        cycle = self._protocol.cycle
        if head is not None:
            self._transport.writelines((head, data))
        elif (
            cycle is None
            or self._begun is cycle.scope
            or not cycle.response_started
            or cycle.scope["method"] == "HEAD"
        ):
            self._transport.write(data)
        else:
            self._head, self._begun = data, cycle.scope

    def close(self) -> None:
        """Close after what is held back."""
        if self._head is not None:
            self.write(b"")
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        """All else is the transport's."""
        return getattr(self._transport, name)


def build_http_server(app: ASGIApp, protection: Protection, *, grace_s: int) -> HttpServer:
    """A server that does not listen yet; `grace_s` is for requests in progress at the end."""
    options: dict[str, Any] = {}
    if (tls := protection.tls) is not None:
        options["ssl_context_factory"] = lambda config, default: tls.http_context()
    return HttpServer(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            backlog=BACKLOG,
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=grace_s,
            **options,
        )
    )


def listen(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """A bound socket; port 0 lets the kernel choose.

    Args:
        host: Address to listen on.
        port: Port.
        is_shared: Whether other processes of this server have the port too. The kernel spreads
            connections over all sockets that listen, so this one does not, yet.

    Raises:
        OSError: The address is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm only if the protocol is named. With it, a small response
    # waits 40 ms for the client's delayed acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(is_shared))
        listening.bind((host, port))
        if not is_shared:
            listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(
            f"REST cannot listen on {host}, port {port} ({error.strerror}); "
            "choose another with --http-port or --host"
        ) from error
    return listening
