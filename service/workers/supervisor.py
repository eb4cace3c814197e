"""Runs several processes of the server: starts, restarts and drains them.

The workers share the ports by SO_REUSEPORT, so the kernel spreads connections over them, and no
request passes through this process. A worker listens only once it is ready. This process serves the
one port for metrics and health, by asking the workers.
"""

import asyncio
import http.client
import json
import logging
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from model.files import atomic_write
from service.errors import Unavailable
from service.machine import available_cpus, on_stop_signals, python_command
from service.monitoring.log import configure_logging
from service.monitoring.metrics_server import LIVE, READY, MetricsServer
from service.monitoring.summed_metrics import add_up, counts_only
from service.settings import Settings
from service.workers.place import WorkerPlace

# Shorter than the time-out of a probe of the whole server.
ANSWER_LIMIT_S: Final = 4.0
# Between two checks of a worker: one that is ready, and one that is not.
CHECK_INTERVAL_S: Final = 1.0
QUICK_INTERVAL_S: Final = 0.1
RESTART_PAUSE_S: Final = 2.0
# As the manifests' liveness probe.
HANG_LIMIT_S: Final = 60.0
LOG_GRACE_S: Final = 2.0
READY_METRIC: Final = "tipserve_ready"
# The format with exemplars.
OPEN_METRICS: Final = "application/openmetrics-text"

# The command line of a worker, by the text of its place.
Command = Callable[[str], list[str]]
logger = logging.getLogger(__name__)
# Series with creation times would double what is scraped.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Worker:
    """A started process. `check` and `scrape` block; they may be called from any thread.

    Attributes:
        process: Of the worker.
        fields: Its names for the log.
        has_joined: Whether it was ready once, since when the kernel sends it connections.
        is_ready: By its last answer.
        is_live: By its last answer; also while it starts.
        lived_at: Monotonic seconds of the last check that found it live.
    """

    def __init__(self, place: WorkerPlace, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.fields: dict[str, object] = {"worker": place.number, "pid": process.pid}
        self.has_joined = self.is_ready = False
        self.is_live = True
        self.lived_at = time.monotonic()
        self._report_socket = place.report_socket

    def signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def check(self) -> None:
        """Ask for its health; it does not change while nothing listens, yet or any more."""
        try:
            self.is_ready = self.get(READY) is not None
            self.is_live = self.is_ready or self.get(LIVE) is not None
            self.has_joined |= self.is_ready
        except ConnectionError:
            if self.has_joined:
                return  # it ends, and is killed if it hangs before its end
        if self.is_live:
            self.lived_at = time.monotonic()

    def scrape(self) -> list[Metric] | None:
        """Its metrics; None if it does not answer."""
        with suppress(ConnectionError):
            content = self.get("/metrics")
            if content is not None:
                return list(text_string_to_metric_families(content))  # type: ignore[no-untyped-call]
        return None

    def get(self, path: str) -> str | None:
        """The body of an answer of status 200; None for another one, or for none in time.

        Raises:
            ConnectionError: Nothing listens.
        """
        with closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(ANSWER_LIMIT_S)
            try:
                connection.sock.connect(self._report_socket)
                connection.request("GET", path, headers={"Accept": OPEN_METRICS})
                answer = connection.getresponse()
                content = answer.read().decode()
            except ConnectionError:
                raise
            except (OSError, http.client.HTTPException):
                return None
        return content if answer.status == http.HTTPStatus.OK else None


class WorkerMetrics(Collector):
    """The metrics of all workers and of this process, added up. Thread-safe.

    What a worker counted until its last answer stays counted after its end: a sum that fell would
    look like a restart of the whole server, and like as many new requests as it has ever had.
    """

    def __init__(self, workers: Callable[[], Sequence[Worker]]) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._own = ProcessCollector(registry=None)
        self._last: dict[Worker, list[Metric]] = {}
        self._ended: list[Metric] = []

    def collect(self) -> list[Metric]:
        """The sums now. A worker that does not answer has its last counts and no other values."""
        with self._lock:
            workers = self._workers()
            for gone in self._last.keys() - set(workers):
                self._ended = add_up([self._ended, counts_only(self._last.pop(gone))])
            with ThreadPoolExecutor(len(workers) or 1) as pool:
                scraped = list(pool.map(lambda worker: worker.scrape(), workers))
            for worker, found in zip(workers, scraped, strict=True):
                self._last[worker] = found or counts_only(self._last.get(worker, ()))
            now = add_up([self._ended, list(self._own.collect()), *self._last.values()])
        return [family for family in now if family.name != READY_METRIC]


class Supervisor:
    """The workers of one server. Belongs to an event loop; only its checks run in other threads.

    Args:
        settings: Of the whole server.
        command: The command line of a worker.

    Raises:
        OSError: Another program has a port.
    """

    def __init__(self, settings: Settings, command: Command) -> None:
        self._settings = settings
        self._command = command
        self._status = 0
        self._is_stopping = asyncio.Event()
        self._have_all_joined = False
        self._workers: dict[int, Worker] = {}
        host, _ = settings.address
        self._reserved = reserve((host, settings.http_port), (host, settings.grpc_port))
        registry = CollectorRegistry()
        registry.register(WorkerMetrics(self._running))
        text = "Processes of this server that took the place of one that had ended."
        self._restarts = Counter("tipserve_worker_restarts", text, registry=registry)
        for name, text, value in (
            (READY_METRIC, "1 while balancers should send requests here, else 0.", self._is_ready),
            ("tipserve_workers", "Processes kept running.", lambda: settings.workers),
            ("tipserve_workers_ready", "Ready processes.", self._num_ready),
        ):
            Gauge(name, text, registry=registry).set_function(value)
        checks = {LIVE: self._check_live, READY: self._check_ready}
        metrics_host, metrics_port = settings.metrics_address
        self._server = MetricsServer(registry, checks, host=metrics_host, port=metrics_port)
        http_port, grpc_port = (sock.getsockname()[1] for sock in self._reserved)
        self.ports = {"http": http_port, "grpc": grpc_port, "metrics": self._server.port}

    def stop(self) -> None:
        """Fail readiness, and let every worker drain and end."""
        self._is_stopping.set()
        for worker in self._running():
            worker.signal(signal.SIGTERM)

    async def run(self) -> int:
        """Keep the workers running until `stop`; returns the exit status."""
        try:
            await asyncio.gather(*map(self._keep, range(self._settings.workers)))
        finally:
            await asyncio.to_thread(self._server.close)
            for sock in self._reserved:
                sock.close()
        return self._status

    def _running(self) -> list[Worker]:
        return list(self._workers.values())

    def _num_ready(self) -> int:
        return sum(worker.is_ready for worker in self._running())

    def _is_ready(self) -> bool:
        """Whether there are workers to which the kernel sends connections, and all can answer."""
        answers = [worker.is_ready for worker in self._running() if worker.has_joined]
        return bool(answers) and all(answers) and not self._is_stopping.is_set()

    def _check_ready(self) -> None:
        if not self._is_ready():
            raise Unavailable("No worker is ready, or one cannot answer.")

    def _check_live(self) -> None:
        """Some worker starts or lives; the others are restarted from here."""
        if not any(worker.is_live for worker in self._running()):
            raise Unavailable("No worker lives.")

    async def _keep(self, number: int) -> None:
        """Start a process whenever the one before has ended, until the server stops."""
        num_starting = self._settings.workers
        while True:
            worker = await self._start(number, num_starting)
            watching = asyncio.ensure_future(self._watch(worker))
            status = await worker.process.wait()
            watching.cancel()
            del self._workers[number]
            fields = {"fields": worker.fields | {"status": status}}
            if self._is_stopping.is_set():
                # Before it has handlers for signals, SIGTERM simply ends it.
                if status and (worker.has_joined or status != -signal.SIGTERM):
                    logger.error("a worker did not drain", extra=fields)
                    self._status = self._status or 1
                return
            if not self._have_all_joined:
                logger.error("a worker could not start", extra=fields)
                self._status = max(1, status)
                self.stop()
                return
            logger.error("a worker ended and is restarted", extra=fields)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), RESTART_PAUSE_S)
                return
            num_starting = 1
            self._restarts.inc()

    async def _start(self, number: int, num_starting: int) -> Worker:
        """Start a process by a new program, since a fork would copy locks that threads hold."""
        place = WorkerPlace(
            number=number,
            num_workers=self._settings.workers,
            num_starting=num_starting,
            ports=self.ports,
            # Containers that share a network share the names, and may share process ids.
            report_socket=f"\0tipserve-{secrets.token_hex(16)}",
        )
        process = await asyncio.create_subprocess_exec(
            *self._command(place.model_dump_json()),
            # Never written to: the worker ends when it closes, so also when this process dies.
            stdin=asyncio.subprocess.PIPE,
            # Ctrl-C must reach the supervisor only.
            start_new_session=True,
        )
        worker = self._workers[number] = Worker(place, process)
        logger.info("worker started", extra={"fields": worker.fields})
        if self._is_stopping.is_set():
            worker.signal(signal.SIGTERM)
        return worker

    async def _watch(self, worker: Worker) -> None:
        """Keep the health of a worker, and kill it once it has not been live for a minute."""
        while time.monotonic() - worker.lived_at < HANG_LIMIT_S:
            had_joined = worker.has_joined
            await asyncio.to_thread(worker.check)
            if worker.has_joined and not had_joined:
                self._note_joining()
            await asyncio.sleep(CHECK_INTERVAL_S if worker.is_ready else QUICK_INTERVAL_S)
        logger.error("a worker hangs and is killed", extra={"fields": worker.fields})
        worker.signal(signal.SIGKILL)

    def _note_joining(self) -> None:
        """Write the ports once a first worker is ready, and say when all are."""
        num_joined = sum(worker.has_joined for worker in self._running())
        if num_joined == 1 and self._settings.ports_file is not None:
            atomic_write(self._settings.ports_file, json.dumps(self.ports) + "\n")
        if num_joined == self._settings.workers and not self._have_all_joined:
            self._have_all_joined = True
            fields = {"workers": num_joined, **self.ports}
            logger.info("all workers are ready", extra={"fields": fields})


def reserve(*addresses: tuple[str, int]) -> list[socket.socket]:
    """Sockets that hold ports for processes of this user; 0 is a free one. None of them listens.

    Raises:
        OSError: Another program has a port.
    """
    with ExitStack() as opened:
        held = []
        for host, port in addresses:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            held.append(opened.enter_context(socket.socket(family)))
            try:
                held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held[-1].bind((host, port))
            except OSError as error:
                raise OSError(
                    f"the workers cannot listen on {host}, port {port} ({error.strerror}); choose "
                    "another with --http-port, --grpc-port or --host"
                ) from error
            # Only after the bind, which would else succeed beside another server of this user.
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.pop_all()
    return held


def supervise(settings: Settings, arguments: Sequence[str]) -> int:
    """Run the workers until SIGTERM, SIGINT or SIGHUP.

    Args:
        settings: Of the whole server.
        arguments: Those of the command line, which each worker reads again.

    Returns:
        The exit status: 0 after a drain, 1 after a failure.
    """
    log = configure_logging(settings.log_level)
    cpus = settings.cpus or available_cpus()
    if settings.workers > cpus:
        fields = {"workers": settings.workers, "cpus": cpus}
        logger.warning("there are more workers than CPUs", extra={"fields": fields})

    async def run() -> int:
        def command(place: str) -> list[str]:
            return python_command("-m", "service", "worker", place, *arguments)

        supervisor = Supervisor(settings, command)
        # A second signal ends this process at once, and the workers when they notice it.
        on_stop_signals(supervisor.stop)
        return await supervisor.run()

    try:
        return asyncio.run(run())
    except OSError as error:
        logger.error("the server could not start: %s", error)
        return 1
    finally:
        log.close(LOG_GRACE_S)
