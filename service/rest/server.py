"""REST's server: uvicorn as it is, without its signal handlers. Strangers come through a proxy."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

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


def build_http_server(app: ASGIApp, protection: Protection, *, grace_s: int) -> HttpServer:
    """A server that does not listen yet; `grace_s` is for requests in progress at the end."""
    options: dict[str, Any] = {}
    if (tls := protection.tls) is not None:
        options["ssl_context_factory"] = lambda config, default: tls.http_context()
    return HttpServer(
        uvicorn.Config(
            app,
            http="httptools",
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
