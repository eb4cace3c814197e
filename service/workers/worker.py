"""One worker process as the supervisor sees it: its start, its end, its health and its metrics."""

import asyncio
import http.client
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.monitoring.metrics_server import LIVE, READY
from service.workers.place import WorkerPlace

# Shorter than the time-out of a probe of the whole server.
ANSWER_LIMIT_S: Final = 4.0
JOIN_POLL_S: Final = 0.1

# The command line of a worker, by the text of its place.
Command = Callable[[str], list[str]]
logger = logging.getLogger(__name__)


class Worker:
    """A started process. `ask` and `scrape` block; they may be called from any thread.

    Attributes:
        place: What it was given.
        has_answered: Whether it has reported once, so that silence means that it hangs.
        joined: Set once it was ready, since when the kernel sends it connections.
        is_leaving: Whether it was told to drain.
        num_failed: Checks of liveness that have failed in succession.
    """

    def __init__(self, place: WorkerPlace, process: asyncio.subprocess.Process) -> None:
        self.place = place
        self.has_answered = False
        self.joined = asyncio.Event()
        self.is_leaving = False
        self.num_failed = 0
        self._process = process
        self._joining = asyncio.ensure_future(self._watch_joining())

    @classmethod
    async def start(cls, command: Command, place: WorkerPlace) -> "Worker":
        """Start a process by a new program, since a fork would copy locks that threads hold."""
        process = await asyncio.create_subprocess_exec(
            *command(place.to_text()),
            # Never written to: the worker ends when it closes, so also when this process dies.
            stdin=asyncio.subprocess.PIPE,
            # Ctrl-C must reach the supervisor only.
            start_new_session=True,
        )
        worker = cls(place, process)
        logger.info("worker started", extra={"fields": worker.fields})
        return worker

    @property
    def fields(self) -> dict[str, object]:
        """Its names for the log."""
        return {"worker": self.place.number, "pid": self._process.pid}

    @property
    def is_alive(self) -> bool:
        """Whether its end has not been noticed yet."""
        return self._process.returncode is None

    async def ended(self) -> int:
        """Wait for its end; returns the exit status, negative for a signal."""
        status = await self._process.wait()
        self._joining.cancel()
        return status

    async def has_joined(self) -> bool:
        """Wait until it was ready once; False if it ended before."""
        joined = asyncio.ensure_future(self.joined.wait())
        ended = asyncio.ensure_future(self._process.wait())
        await asyncio.wait({joined, ended}, return_when=asyncio.FIRST_COMPLETED)
        joined.cancel()
        ended.cancel()
        return self.joined.is_set()

    def terminate(self) -> None:
        """Let it drain and end."""
        self.is_leaving = True
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def ask(self, path: str) -> bool | None:
        """Whether a health check passes; None if nothing listens, yet or any more."""
        answer = self._get(path)
        return None if answer is None else answer[0] == http.HTTPStatus.OK

    @property
    def is_live(self) -> bool:
        """Whether it starts or passes its check of liveness."""
        return self.is_alive and (self.ask(LIVE) or not self.has_answered)

    def scrape(self) -> list[Metric] | None:
        """Its metrics; None if it does not answer."""
        answer = self._get("/metrics")
        if answer is None or answer[0] != http.HTTPStatus.OK:
            return None
        return list(text_string_to_metric_families(answer[1].decode()))

    def _get(self, path: str) -> tuple[int, bytes] | None:
        connection = _UnixConnection(self.place.report_socket)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            content = answer.read()
        except ConnectionError:
            return None
        except (OSError, http.client.HTTPException):
            return http.HTTPStatus.GATEWAY_TIMEOUT, b""
        finally:
            connection.close()
        self.has_answered = True
        return answer.status, content

    async def _watch_joining(self) -> None:
        while not await asyncio.to_thread(self.ask, READY):
            await asyncio.sleep(JOIN_POLL_S)
        self.joined.set()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_LIMIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
