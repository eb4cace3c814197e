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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from model.files import atomic_write
from service.errors import Unavailable
from service.machine import available_cpus, python_command
from service.monitoring.log import configure_logging
from service.monitoring.metrics_server import LIVE, READY, MetricsServer
from service.monitoring.summed_metrics import add_up, counts_only
from service.settings import Settings
from service.workers.place import WorkerPlace

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Shorter than the time-out of a probe of the whole server.
ANSWER_LIMIT_S: Final = 4.0
POLL_S: Final = 0.1
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
# After a life of so long the next restart waits for the first pause again.
STABLE_S: Final = 60.0
# As the manifests' liveness probe: restarted after a minute of failed checks.
LIVE_INTERVAL_S: Final = 10.0
NUM_FAILED_CHECKS: Final = 6
LOG_GRACE_S: Final = 2.0
READY_METRIC: Final = "tipserve_ready"

# The command line of a worker, by the text of its place.
Command = Callable[[str], list[str]]
logger = logging.getLogger(__name__)


class Worker:
    """A started process. `ask` and `scrape` block; they may be called from any thread.

    Attributes:
        process: Of the worker.
        has_answered: Whether it has reported once, so that silence means that it hangs.
        joined: Set once it was ready, since when the kernel sends it connections.
        num_failed: Checks of liveness that have failed in succession.
        fields: Its names for the log.
    """

    def __init__(self, place: WorkerPlace, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.has_answered = False
        self.joined = asyncio.Event()
        self.num_failed = 0
        self.fields: dict[str, object] = {"worker": place.number, "pid": process.pid}
        self._report_socket = place.report_socket

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

    async def watch_joining(self) -> None:
        """Return once it is ready."""
        while not await asyncio.to_thread(self.ask, READY):
            await asyncio.sleep(POLL_S)
        self.joined.set()

    def signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def ask(self, path: str) -> bool | None:
        """Whether a health check passes; None if nothing listens, yet or any more."""
        answer = self._get(path)
        return None if answer is None else answer[0] == http.HTTPStatus.OK

    def scrape(self) -> list[Metric] | None:
        """Its metrics; None if it does not answer."""
        answer = self._get("/metrics")
        if answer is None or answer[0] != http.HTTPStatus.OK:
            return None
        return list(text_string_to_metric_families(answer[1].decode()))

    def _get(self, path: str) -> tuple[int, bytes] | None:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(ANSWER_LIMIT_S)
        try:
            connection.sock.connect(self._report_socket)
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


class WorkerMetrics(Collector):
    """The metrics of all workers and of this process, added up. Thread-safe.

    What a worker counted until its last answer stays counted after its end: a sum that fell would
    look like a restart of the whole server, and like as many new requests as it has ever had.
    """

    def __init__(
        self,
        workers: Callable[[], Sequence[Worker]],
        scrape: Callable[[Worker], list[Metric] | None],
    ) -> None:
        self._workers = workers
        self._scrape = scrape
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
                found = list(pool.map(self._scrape, workers))
            now = [self._kept(*pair) for pair in zip(workers, found, strict=True)]
            sums = add_up([self._ended, self._own.collect(), *now])
        return [family for family in sums if family.name != READY_METRIC]

    def _kept(self, worker: Worker, found: list[Metric] | None) -> list[Metric]:
        if found is None:
            return counts_only(self._last.get(worker, ()))
        self._last[worker] = found
        return found


class Supervisor(Collector):
    """The workers of one server. Belongs to an event loop; only its checks run in other threads.

    Args:
        settings: Of the whole server.
        command: The command line of a worker.
    """

    def __init__(self, settings: Settings, command: Command) -> None:
        self._settings = settings
        self._num_workers = settings.num_workers
        self._command = command
        self._num_restarts = 0
        self._status = 0
        self._is_stopping = asyncio.Event()
        self._have_all_joined = asyncio.Event()
        self._workers: dict[int, Worker] = {}
        host, _ = settings.address
        self._reserved = reserve((host, settings.http_port), (host, settings.grpc_port))
        http_port, grpc_port = (sock.getsockname()[1] for sock in self._reserved)
        registry = CollectorRegistry()
        registry.register(WorkerMetrics(self._running, Worker.scrape))
        registry.register(self)
        checks = {LIVE: self._check_live, READY: self._check_ready}
        self._server = MetricsServer(registry, checks, host=host, port=settings.metrics_port)
        self.ports = {"http": http_port, "grpc": grpc_port, "metrics": self._server.port}

    def stop(self) -> None:
        """Fail readiness, and let every worker drain and end."""
        self._is_stopping.set()
        for worker in self._running():
            worker.signal(signal.SIGTERM)

    async def run(self) -> int:
        """Keep the workers running until `stop`; returns the exit status."""
        watching = asyncio.ensure_future(self._watch_liveness())
        try:
            await asyncio.gather(*map(self._keep, range(self._num_workers)))
        finally:
            watching.cancel()
            await asyncio.to_thread(self._server.close)
            for sock in self._reserved:
                sock.close()
        return self._status

    def collect(self) -> list[Metric]:
        """Readiness of the server, and the state of its workers."""
        answers = self._ask_all(READY)
        text = "1 while balancers should send requests here, else 0."
        return [
            GaugeMetricFamily(READY_METRIC, text, float(self._is_ready(answers))),
            GaugeMetricFamily(
                "tipserve_workers_ready",
                "Ready processes of this server.",
                sum(answer is True for _, answer in answers),
            ),
            CounterMetricFamily(
                "tipserve_worker_restarts",
                "Processes of this server that took the place of one that had ended.",
                self._num_restarts,
            ),
        ]

    def _running(self) -> list[Worker]:
        return list(self._workers.values())

    def _ask_all(self, path: str) -> list[tuple[Worker, bool | None]]:
        workers = self._running()
        with ThreadPoolExecutor(len(workers) or 1) as pool:
            return list(zip(workers, pool.map(lambda w: w.ask(path), workers), strict=True))

    def _is_ready(self, answers: Iterable[tuple[Worker, bool | None]]) -> bool:
        """Whether there are workers to which the kernel sends connections, and all can answer.

        One that starts does not listen yet, and one that has ended not any more.
        """
        joined = [answer for w, answer in answers if w.joined.is_set() and answer is not None]
        return bool(joined) and all(joined) and not self._is_stopping.is_set()

    def _check_ready(self) -> None:
        if not self._is_ready(self._ask_all(READY)):
            raise Unavailable("No worker is ready, or one cannot answer.")

    def _check_live(self) -> None:
        """Some worker starts or lives; the others are restarted from here."""
        answers = self._ask_all(LIVE)
        if not any(answer or not worker.has_answered for worker, answer in answers):
            raise Unavailable("No worker lives.")

    async def _keep(self, number: int) -> None:
        """Start a process whenever the one before has ended, until the server stops."""
        clock = asyncio.get_running_loop().time
        num_starting, pause_s = self._num_workers, FIRST_PAUSE_S
        while True:
            began = clock()
            worker = await self._start(number, num_starting)
            joining = asyncio.ensure_future(self._note_joining(worker))
            status = await worker.process.wait()
            joining.cancel()
            del self._workers[number]
            fields = worker.fields | {"status": status}
            if self._is_stopping.is_set():
                # Before it has handlers for signals, SIGTERM simply ends it.
                if status and (worker.joined.is_set() or status != -signal.SIGTERM):
                    logger.error("a worker did not drain", extra={"fields": fields})
                    self._status = self._status or 1
                return
            if not self._have_all_joined.is_set():
                logger.error("a worker could not start", extra={"fields": fields})
                self._status = max(1, status)
                self.stop()
                return
            pause_s = FIRST_PAUSE_S if clock() - began > STABLE_S else pause_s
            fields |= {"restart_in_s": pause_s}
            logger.error("a worker ended and is restarted", extra={"fields": fields})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), pause_s)
                return
            num_starting, pause_s = 1, min(2 * pause_s, LONGEST_PAUSE_S)
            self._num_restarts += 1

    async def _start(self, number: int, num_starting: int) -> Worker:
        place = WorkerPlace(
            number=number,
            num_workers=self._num_workers,
            num_starting=num_starting,
            ports=self.ports,
            # Containers that share a network share the names, and may share process ids.
            report_socket=f"\0tipserve-{secrets.token_hex(16)}",
        )
        worker = await Worker.start(self._command, place)
        self._workers[number] = worker
        if self._is_stopping.is_set():
            worker.signal(signal.SIGTERM)
        return worker

    async def _note_joining(self, joining: Worker) -> None:
        """Write the ports once a first worker is ready, and say when all are."""
        await joining.watch_joining()
        num_joined = sum(worker.joined.is_set() for worker in self._running())
        if num_joined == 1 and self._settings.ports_file is not None:
            atomic_write(self._settings.ports_file, json.dumps(self.ports) + "\n")
        if num_joined == self._num_workers and not self._have_all_joined.is_set():
            self._have_all_joined.set()
            fields = {"workers": self._num_workers, **self.ports}
            logger.info("all workers are ready", extra={"fields": fields})

    async def _watch_liveness(self) -> None:
        """Kill a worker that has not been live for a minute; then it is restarted."""
        while True:
            await asyncio.sleep(LIVE_INTERVAL_S)
            for worker, answer in await asyncio.to_thread(self._ask_all, LIVE):
                is_live = answer or not worker.has_answered
                worker.num_failed = 0 if is_live else worker.num_failed + 1
                if worker.num_failed >= NUM_FAILED_CHECKS:
                    logger.error("a worker hangs and is killed", extra={"fields": worker.fields})
                    worker.signal(signal.SIGKILL)


def reserve(*addresses: tuple[str, int]) -> list[socket.socket]:
    """Sockets that hold ports for processes of this user; 0 is a free one. None of them listens.

    Raises:
        OSError: Another program has a port.
    """
    ports = [port for _, port in addresses if port]
    if len(set(ports)) < len(ports):
        raise OSError("http_port and grpc_port are the same; change one of them")
    held: list[socket.socket] = []
    for host, port in addresses:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        held.append(sock)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
        except OSError as error:
            for opened in held:
                opened.close()
            raise OSError(
                f"the workers cannot listen on {host}, port {port} ({error.strerror}); choose "
                "another with --http-port, --grpc-port, --host or --grpc-host"
            ) from error
        # Only after the bind, which would else succeed beside another server of this user.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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

    def command(place: str) -> list[str]:
        return python_command("-m", "service", "worker", place, *arguments)

    try:
        return asyncio.run(_run(settings, command))
    except OSError as error:
        logger.error("the server could not start: %s", error)
        return 1
    finally:
        log.close(LOG_GRACE_S)


async def _run(settings: Settings, command: Command) -> int:
    supervisor = Supervisor(settings, command)
    cpus = settings.cpus or available_cpus()
    if settings.num_workers > cpus:
        fields = {"workers": settings.num_workers, "cpus": cpus}
        logger.warning("there are more workers than CPUs", extra={"fields": fields})
    loop = asyncio.get_running_loop()

    def stop() -> None:
        supervisor.stop()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            # A second signal ends this process at once, and the workers when they notice it.
            signal.signal(number, signal.SIG_DFL)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    return await supervisor.run()
