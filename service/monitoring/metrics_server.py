"""The port for metrics and health probes, without TLS and keys.

A kubelet has no client certificate, so its probes need this port where REST and gRPC require one.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.errors import ServiceError

BACKLOG: Final = 128
# At the end, for a scrape in progress.
GRACE_S: Final = 1
LIVE, READY = "/v2/health/live", "/v2/health/ready"

Check = Callable[[], None]


class MetricsServer:
    """Serves on a thread and an event loop of its own, from its construction to `close`.

    A slow client holds a connection but no thread, so 300 of them keep no probe waiting.

    Args:
        registry: The metrics.
        checks: Health checks by path; each raises `ServiceError` if it fails.
        host: Address to listen on, or the name of a Unix socket in Linux's abstract namespace,
            which begins with a zero byte.
        port: 0 chooses a free one.

    Raises:
        OSError: The address is not available.
    """

    def __init__(
        self, registry: CollectorRegistry, checks: Mapping[str, Check], *, host: str, port: int
    ) -> None:
        try:
            self._socket = _listen(host, port)
        except OSError as error:
            raise OSError(
                f"metrics cannot be served on {host}: {error.strerror}; choose another port or "
                "address by --metrics-port or --host"
            ) from error
        self._server = uvicorn.Server(
            uvicorn.Config(
                build_app(registry, checks),
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        serve = partial(asyncio.run, self._server.serve(sockets=[self._socket]))
        self._thread = threading.Thread(target=serve, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use; 0 of a Unix socket."""
        name = self._socket.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def close(self) -> None:
        """Stop, and wait for the thread."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def build_app(registry: CollectorRegistry, checks: Mapping[str, Check]) -> Starlette:
    """The metrics, and the checks by their paths; each is answered in a thread."""

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    def probe(request: Request) -> JSONResponse:
        try:
            checks[request.url.path]()
        except ServiceError:
            return JSONResponse({"ok": False}, 503)
        return JSONResponse({"ok": True})

    routes = [Route("/metrics", metrics), *(Route(path, probe) for path in checks)]
    return Starlette(routes=routes, middleware=[Middleware(GZipMiddleware)])


def _listen(host: str, port: int) -> socket.socket:
    """A socket whose connections wait until the event loop runs."""
    if host[0] != "\0":
        is_v6 = ":" in host
        family = socket.AF_INET6 if is_v6 else socket.AF_INET
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_v6
        )
    named = socket.socket(socket.AF_UNIX)
    named.bind(host)
    named.listen(BACKLOG)
    return named
