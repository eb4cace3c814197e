"""The port for metrics and health probes, without TLS and keys.

A kubelet has no client certificate, so its probes need this port where REST and gRPC require one.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from service.errors import ServiceError

CLIENT_TIMEOUT_S: Final = 10.0
LIVE, READY = "/v2/health/live", "/v2/health/ready"

Check = Callable[[], None]


class MetricsServer:
    """Serves on its own threads, from its construction to `close`."""

    def __init__(
        self, registry: CollectorRegistry, checks: dict[str, Check], *, host: str, port: int
    ) -> None:
        """Listen.

        Args:
            registry: The metrics.
            checks: Health checks by path; each raises `ServiceError` if it fails.
            host: Address to listen on.
            port: 0 chooses a free one.

        Raises:
            OSError: The address is not available.
        """
        kind = _ServerV6 if ":" in host else _Server
        app = _application(registry, checks)
        try:
            self._server = make_server(host, port, app, kind, handler_class=_Handler)
        except OSError as error:
            raise OSError(
                f"metrics cannot be served on {host}, port {port} ({error.strerror}); "
                "choose another by --metrics-port or --host"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use."""
        return self._server.server_port

    def close(self) -> None:
        """Stop, and wait for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _application(registry: CollectorRegistry, checks: dict[str, Check]) -> Callable[..., Any]:
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        check = checks.get(environ["PATH_INFO"])
        if check is None:
            scraped: Iterable[bytes] = metrics(environ, start_response)
            return scraped
        status, body = "200 OK", {"ok": True}
        try:
            check()
        except ServiceError:
            status, body = "503 Service Unavailable", {"ok": False}
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    """Logs nothing, and limits the wait for a request."""

    timeout = CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        pass
