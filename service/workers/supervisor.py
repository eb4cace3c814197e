"""Runs several processes of the server: starts, restarts, replaces and drains them.

The workers share the ports by SO_REUSEPORT, so the kernel spreads connections over them, and no
request passes through this process. A worker listens only once it is ready. This process serves the
one port for metrics and health, by asking the workers.
"""

import asyncio
import json
import logging
import secrets
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from model.conversion.source import split_name
from model.files import atomic_write
from model.manifest import MANIFEST_NAME
from model.package import BUNDLED
from service.errors import Unavailable
from service.machine import available_cpus, python_command
from service.monitoring.log import configure_logging
from service.monitoring.metrics_server import LIVE, READY, MetricsServer
from service.monitoring.summed_metrics import add_up, counts_only
from service.settings import Settings
from service.workers.place import WorkerPlace
from service.workers.worker import Command, Worker

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
# After a life of so long the next restart waits for the first pause again.
STABLE_S: Final = 60.0
# As the manifests' liveness probe: restarted after a minute of failed checks.
LIVE_INTERVAL_S: Final = 10.0
NUM_FAILED_CHECKS: Final = 6
PACKAGE_INTERVAL_S: Final = 2.0
LONGEST_PACKAGE_PAUSE_S: Final = 300.0
LOG_GRACE_S: Final = 2.0
READY_METRIC: Final = "tipserve_ready"

Workers = Callable[[], Sequence[Worker]]
logger = logging.getLogger(__name__)


class WorkerMetrics(Collector):
    """The metrics of all workers and of this process, added up. Thread-safe.

    What a worker counted until its last answer stays counted after its end: a sum that fell would
    look like a restart of the whole server, and like as many new requests as it has ever had.
    """

    def __init__(self, workers: Workers, scrape: Callable[[Worker], list[Metric] | None]) -> None:
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
        self.pause: Callable[[float], Awaitable[None]] = asyncio.sleep
        self._is_stopping = asyncio.Event()
        self._have_all_joined = asyncio.Event()
        # Every process that has not ended; while a slot's is replaced, it has two.
        self._workers: list[Worker] = []
        self._slots: dict[int, Worker] = {}
        self._locks = [asyncio.Lock() for _ in range(self._num_workers)]
        host, _ = settings.address
        self._reserved = reserve((host, settings.http_port), (host, settings.grpc_port))
        http_port, grpc_port = (sock.getsockname()[1] for sock in self._reserved)
        registry = CollectorRegistry()
        registry.register(WorkerMetrics(lambda: tuple(self._workers), Worker.scrape))
        registry.register(self)
        checks = {LIVE: self._check_live, READY: self._check_ready}
        metrics_host, port = settings.metrics_address
        self._server = MetricsServer(registry, checks, host=metrics_host, port=port)
        self.ports = {"http": http_port, "grpc": grpc_port, "metrics": self._server.port}

    def stop(self) -> None:
        """Fail readiness, and let every worker drain and end."""
        self._is_stopping.set()
        for worker in self._workers:
            worker.terminate()

    async def run(self) -> int:
        """Keep the workers running until `stop`; returns the exit status."""
        for number in range(self._num_workers):
            self._slots[number] = await self._start(number, self._num_workers)
        keepers = [asyncio.ensure_future(self._keep(number)) for number in self._slots]
        watching = (self._watch_start, self._watch_liveness, self._watch_packages)
        watches = [asyncio.ensure_future(watch()) for watch in watching]
        try:
            await asyncio.gather(*keepers)
            for worker in tuple(self._workers):  # a replacement that has just started
                await self._end(worker)
        finally:
            for task in (*keepers, *watches):
                task.cancel()
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

    def _ask_all(self, path: str) -> list[tuple[Worker, bool | None]]:
        workers = tuple(self._workers)
        with ThreadPoolExecutor(len(workers) or 1) as pool:
            return list(zip(workers, pool.map(lambda w: w.ask(path), workers), strict=True))

    def _is_ready(self, answers: Iterable[tuple[Worker, bool | None]]) -> bool:
        """Whether there are workers to which the kernel sends connections, and all can answer.

        One that starts does not listen yet, one that has ended not any more, and one that is
        replaced serves what it gets.
        """
        are_ready = [
            answer
            for worker, answer in answers
            if worker.joined.is_set() and not worker.is_leaving and answer is not None
        ]
        return bool(are_ready) and all(are_ready) and not self._is_stopping.is_set()

    def _check_ready(self) -> None:
        if not self._is_ready(self._ask_all(READY)):
            raise Unavailable("No worker is ready, or one cannot answer.")

    def _check_live(self) -> None:
        """Some worker starts or lives; the others are replaced from here."""
        answers = self._ask_all(LIVE)
        if not any(answer or not worker.has_answered for worker, answer in answers):
            raise Unavailable("No worker lives.")

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
        self._workers.append(worker)
        if self._is_stopping.is_set():
            worker.terminate()
        return worker

    async def _end(self, worker: Worker) -> int:
        status = await worker.ended()
        if worker in self._workers:
            self._workers.remove(worker)
        return status

    async def _keep(self, number: int) -> None:
        """Start a process in a slot whenever the one before has ended, until the server stops."""
        clock = asyncio.get_running_loop().time
        pause_s = FIRST_PAUSE_S
        while True:
            worker, began = self._slots[number], clock()
            status = await self._end(worker)
            async with self._locks[number]:
                if self._slots[number] is not worker:  # it was replaced
                    continue
                if self._is_stopping.is_set():
                    self._note_end(worker, status)
                    return
                fields = worker.fields | {"status": status}
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
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                self._num_restarts += 1
                self._slots[number] = await self._start(number, 1)

    def _note_end(self, worker: Worker, status: int) -> None:
        # Before it has handlers for signals, SIGTERM simply ends it.
        if status and (worker.joined.is_set() or status != -signal.SIGTERM):
            fields = worker.fields | {"status": status}
            logger.error("a worker did not drain", extra={"fields": fields})
            self._status = self._status or 1

    async def _watch_start(self) -> None:
        joined = [asyncio.ensure_future(w.joined.wait()) for w in self._slots.values()]
        await asyncio.wait(joined, return_when=asyncio.FIRST_COMPLETED)
        if self._settings.ports_file is not None:
            atomic_write(self._settings.ports_file, json.dumps(self.ports) + "\n")
        await asyncio.gather(*joined)
        self._have_all_joined.set()
        fields = {"workers": self._num_workers, **self.ports}
        logger.info("all workers are ready", extra={"fields": fields})

    async def _watch_liveness(self) -> None:
        """Kill a worker that has not been live for a minute; then it is restarted."""
        while not self._is_stopping.is_set():
            await self.pause(LIVE_INTERVAL_S)
            for worker, answer in await asyncio.to_thread(self._ask_all, LIVE):
                is_live = answer or not worker.has_answered or worker.is_leaving
                worker.num_failed = 0 if is_live else worker.num_failed + 1
                if worker.num_failed >= NUM_FAILED_CHECKS:
                    logger.error("a worker hangs and is killed", extra={"fields": worker.fields})
                    worker.kill()

    async def _watch_packages(self) -> None:
        """Replace all workers when a package that the settings name has changed."""
        known, pause_s = packages(self._settings.model), PACKAGE_INTERVAL_S
        while not self._is_stopping.is_set():
            await self.pause(pause_s)
            found = await asyncio.to_thread(packages, self._settings.model)
            is_whole = [one is None for one in found] == [one is None for one in known]
            if found == known or not is_whole or not self._have_all_joined.is_set():
                pause_s = PACKAGE_INTERVAL_S
            elif await self._replace_all():
                known, pause_s = found, PACKAGE_INTERVAL_S
            else:
                pause_s = min(2 * pause_s, LONGEST_PACKAGE_PAUSE_S)

    async def _replace_all(self) -> bool:
        """Replace the workers one by one, each after its successor is ready.

        Returns:
            False if one did not become ready; those that are not replaced yet stay.
        """
        logger.info("a package has changed: the workers are replaced")
        for number in self._slots:
            async with self._locks[number]:
                old = self._slots[number]
                new = await self._start(number, 1)
                if not await new.has_joined():
                    fields = new.fields | {"status": await self._end(new)}
                    logger.error("the changed package is not served", extra={"fields": fields})
                    return False
                self._slots[number] = new
            old.terminate()
            await old.ended()
        logger.info("the workers are replaced")
        return True


def packages(models: Iterable[str]) -> list[tuple[int, ...] | None]:
    """What tells one content of each package from another; None for bundled ones and checkpoints.

    Publishing moves a link, so the manifest behind the name is then another file.
    """
    found: list[tuple[int, ...] | None] = []
    for text in models:
        _, folder = split_name(text)
        try:
            stat = None if folder in BUNDLED else (Path(folder) / MANIFEST_NAME).stat()
        except (OSError, ValueError):
            stat = None
        found.append(stat and (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return found


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
    log = configure_logging(settings.log_level, settings.log_format)

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
