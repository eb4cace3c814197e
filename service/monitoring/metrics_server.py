"""The port for metrics and health probes, without TLS and keys.

A kubelet has no client certificate, so its probes need this port where REST and gRPC require one.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from email import message_from_string
from typing import Any, Final

from prometheus_client import CollectorRegistry, make_wsgi_app

from service.errors import ServiceError

# The whole time of a request: a timeout of each read is met by one byte every few seconds.
REQUEST_LIMIT_S: Final = 10.0
MAX_HEAD_BYTES: Final = 16 * 1024
# A new connection beyond this number closes the oldest one; a scrape and a probe take milliseconds.
MAX_CONNECTIONS: Final = 256
# With socketserver's default of 5, one flooding client let six connections a second through.
BACKLOG: Final = 128
LIVE, READY = "/v2/health/live", "/v2/health/ready"

Check = Callable[[], None]


class MetricsServer:
    """Serves on an event loop of its own, from its construction to `close`.

    A slow client holds a connection but no thread, so 300 of them keep no probe waiting.
    """

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
        self._metrics = make_wsgi_app(registry)
        self._checks = checks
        try:
            self._socket = _bind(host, port)
        except OSError as error:
            raise OSError(
                f"metrics cannot be served on {host}, port {port} ({error.strerror}); "
                "choose another by --metrics-port or --host"
            ) from error
        # The time limits of the open connections, the oldest first.
        self._open: dict[asyncio.Timeout, None] = {}
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use; 0 of a Unix socket."""
        name = self._socket.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def close(self) -> None:
        """Stop, and wait for the thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(
            self._answer, sock=self._socket, limit=MAX_HEAD_BYTES, backlog=BACKLOG
        )
        await self._stop.wait()
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close the connection."""
        while len(self._open) >= MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            if not oldest.expired():
                oldest.reschedule(self._loop.time())
        limit = asyncio.timeout(REQUEST_LIMIT_S)
        self._open[limit] = None
        # `drain` then returns once the kernel has all bytes, also for a client that reads slowly.
        writer.transport.set_write_buffer_limits(0)
        try:
            async with limit:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await asyncio.to_thread(self._respond, head))
                await writer.drain()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # a time-out, or a client that left or sent too much
        finally:
            self._open.pop(limit, None)
            writer.transport.abort()

    def _respond(self, head: bytes) -> bytes:
        line, _, fields = head.decode("latin-1").partition("\r\n")
        method, target = (*line.split(" "), "", "")[:2]
        path, _, query = target.partition("?")
        check = self._checks.get(path)
        status, headers, body = (
            _check(check) if check else self._scrape(method, path, query, fields)
        )
        headers += [("Content-Length", str(len(body))), ("Connection", "close")]
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
        return "\r\n".join(lines).encode("latin-1") + (body if method != "HEAD" else b"")

    def _scrape(self, method: str, path: str, query: str, fields: str) -> "Answer":
        """The answer of the library, which chooses the format and compresses."""
        given = message_from_string(fields)
        answer: list[Any] = []
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "HTTP_ACCEPT": given.get("accept", ""),
            "HTTP_ACCEPT_ENCODING": given.get("accept-encoding", ""),
        }
        body = self._metrics(environ, lambda status, headers: answer.extend((status, headers)))
        return answer[0], list(answer[1]), b"".join(body)


Answer = tuple[str, list[tuple[str, str]], bytes]


def _check(check: Check) -> Answer:
    headers = [("Content-Type", "application/json")]
    try:
        check()
    except ServiceError:
        return "503 Service Unavailable", headers, json.dumps({"ok": False}).encode()
    return "200 OK", headers, json.dumps({"ok": True}).encode()


def _bind(host: str, port: int) -> socket.socket:
    is_path = host[0] == "\0"
    family = socket.AF_UNIX if is_path else socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(host if is_path else (host, port))
    except OSError:
        sock.close()
        raise
    sock.listen(BACKLOG)  # a connection waits until the event loop runs
    return sock
