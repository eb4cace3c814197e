"""The port for metrics and health probes, without TLS and keys.

A kubelet has no client certificate, so its probes need this port where REST and gRPC require one.
"""

import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from service.errors import ServiceError

# The whole time of a request: a timeout of each read is met by one byte every few seconds.
REQUEST_LIMIT_S: Final = 10.0
# Without a bound, 1,255 trickled requests held as many threads. A new connection beyond this number
# closes the oldest one; a scrape and a probe take milliseconds.
MAX_THREADS: Final = 16
UNDISTURBED_S: Final = 1.0
# With socketserver's default of 5, one flooding client let six connections a second through.
BACKLOG: Final = 128
NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
ACCEPT_PAUSE_S: Final = 0.1
LIVE, READY = "/v2/health/live", "/v2/health/ready"

Check = Callable[[], None]
logger = logging.getLogger(__name__)


class MetricsServer:
    """Serves on its own threads, from its construction to `close`."""

    def __init__(
        self, registry: CollectorRegistry, checks: dict[str, Check], *, host: str, port: int
    ) -> None:
        """Listen.

        Args:
            registry: The metrics.
            checks: Health checks by path; each raises `ServiceError` if it fails.
            host: Address to listen on, or the name of a Unix socket in Linux's abstract namespace,
                which begins with a zero byte.
            port: 0 chooses a free one.

        Raises:
            OSError: The address is not available.
        """
        kind = _UnixServer if host[0] == "\0" else _ServerV6 if ":" in host else _Server
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
    """Bounds the threads, and the time of each request."""

    daemon_threads = True
    request_queue_size = BACKLOG

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Open connections, the oldest first, and when each began.
        self._began: dict[socket.socket, float] = {}
        self._has_room = threading.Condition()
        self._is_accepting = True
        super().__init__(*args, **kwargs)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; pause if there is no descriptor, since the port stays readable."""
        try:
            accepted: tuple[socket.socket, Any] = super().get_request()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                if self._is_accepting:
                    logger.error("the metrics port cannot accept connections: %s", error.strerror)
                self._is_accepting = False
                time.sleep(ACCEPT_PAUSE_S)
            raise
        self._is_accepting = True
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread; wait for one, or for the oldest connection, if all are taken."""
        with self._has_room:
            while len(self._began) >= MAX_THREADS:
                oldest, began = next(iter(self._began.items()))
                left_s = began + UNDISTURBED_S - time.monotonic()
                if left_s <= 0:
                    _end(oldest)
                self._has_room.wait(max(left_s, ACCEPT_PAUSE_S))
            self._began[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and free its thread's place."""
        super().shutdown_request(request)
        with self._has_room:
            self._began.pop(request, None)
            self._has_room.notify()

    def service_actions(self) -> None:
        """Close connections whose time is over; runs twice a second, and after each accept."""
        latest = time.monotonic() - REQUEST_LIMIT_S
        with self._has_room:
            for request, began in self._began.items():
                if began < latest:
                    _end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a broken connection where only those who look for it see it."""
        logger.debug("a connection to the metrics port broke", exc_info=True)


def _end(request: socket.socket) -> None:
    """Wake up the thread that waits for this client."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """Bind to the name, which has no port."""
        self.socket.bind(self.server_address[0])
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; a client has no address."""
        request, _ = super().get_request()
        return request, ("localhost", 0)


class _Handler(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass
