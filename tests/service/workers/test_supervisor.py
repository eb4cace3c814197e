"""The supervisor's rules: ports, readiness, liveness, and what counts after a worker has ended."""

import asyncio
import signal
import socket
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from service.errors import Unavailable
from service.monitoring.metrics_server import LIVE, READY
from service.settings import Settings
from service.workers import supervisor
from service.workers.place import WorkerPlace
from service.workers.supervisor import Supervisor, Worker, WorkerMetrics, reserve


class FakeWorker(Worker):
    """A worker whose answers a test sets; None is no connection."""

    def __init__(self, *, ready: bool | None = True, live: bool | None = True) -> None:
        place = WorkerPlace(number=0, num_workers=2, num_starting=2, ports={}, report_socket="")
        process: Any = type("Process", (), {"pid": 1, "send_signal": lambda _, n: self.sent(n)})()
        super().__init__(place, process)
        self.answers = {READY: ready, LIVE: live}
        self.signals: list[int] = []
        self.num_requests: int | None = 0
        self.check()

    def sent(self, number: int) -> None:
        self.signals.append(number)

    def get(self, path: str) -> str | None:
        if self.answers[path] is None:
            raise ConnectionRefusedError
        return "" if self.answers[path] else None

    def scrape(self) -> list[Metric] | None:
        if self.num_requests is None:
            return None
        return [
            CounterMetricFamily("requests", "text", self.num_requests),
            GaugeMetricFamily("inflight", "text", 1),
            GaugeMetricFamily("tipserve_ready", "text", 1),
        ]


async def supervisor_of(*workers: FakeWorker) -> Any:
    settings = Settings(workers=2, host="127.0.0.1", http_port=0, grpc_port=0, metrics_port=0)
    made: Any = Supervisor(settings, lambda _: [])
    made._workers = dict(enumerate(workers))
    made._server.close()
    for sock in made._reserved:
        sock.close()
    return made


def passes(check: Any) -> bool:
    try:
        check()
    except Unavailable:
        return False
    return True


@pytest.mark.parametrize(
    ("answers", "is_ready", "is_live"),
    [
        ([(None, None)], False, True),  # it starts
        ([(True, True), (None, None)], True, True),  # one starts, or has ended
        ([(True, True), (False, True)], True, True),  # one loads its model and does not listen
        ([(False, True)], False, True),
        ([(False, False), (None, None)], False, True),
        ([(True, True), (False, False)], True, True),
        ([(False, False)], False, False),
        ([], False, False),
    ],
)
async def test_health_is_that_of_the_workers_that_listen(
    answers: Sequence[tuple[bool | None, bool | None]], is_ready: bool, is_live: bool
) -> None:
    made = await supervisor_of(*(FakeWorker(ready=ready, live=live) for ready, live in answers))
    assert (passes(made._check_ready), passes(made._check_live)) == (is_ready, is_live)


async def test_a_listening_worker_that_cannot_answer_fails_readiness() -> None:
    first, second = FakeWorker(), FakeWorker()
    made = await supervisor_of(first, second)
    for answer, is_ready in ((True, True), (False, False), (None, False), (True, True)):
        first.answers[READY] = answer
        first.check()
        assert passes(made._check_ready) == is_ready
    made.stop()
    assert not passes(made._check_ready)
    assert first.signals == second.signals == [signal.SIGTERM]


async def test_a_worker_that_is_not_live_for_a_minute_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(supervisor, "QUICK_INTERVAL_S", 0.0)
    workers = [FakeWorker(), FakeWorker(ready=None, live=None), FakeWorker(), FakeWorker()]
    made = await supervisor_of(*workers)
    watched = [asyncio.ensure_future(made._watch(worker)) for worker in workers]
    workers[2].answers |= {READY: False, LIVE: False}
    workers[3].answers |= {READY: None, LIVE: None}  # it has served, and hangs before its end
    workers[2].check()
    for worker in workers:
        worker.lived_at -= supervisor.HANG_LIMIT_S
    for worker in (*workers[:2], workers[3]):
        worker.check()
    async with asyncio.timeout(20):
        await asyncio.gather(*watched[2:])
    for task in watched:
        task.cancel()
    assert [worker.signals for worker in workers] == [[], [], [signal.SIGKILL], [signal.SIGKILL]]


def value(families: list[Metric], name: str) -> float:
    found = [family for family in families if family.name == name]
    return float(sum(sample.value for family in found for sample in family.samples))


def test_counts_never_fall_when_a_worker_ends_or_is_silent() -> None:
    first, second, third = (FakeWorker() for _ in range(3))
    workers: list[Worker] = [first, second]
    metrics = WorkerMetrics(lambda: list(workers))

    def now() -> tuple[float, float]:
        families = metrics.collect()
        return value(families, "requests"), value(families, "inflight")

    first.num_requests, second.num_requests = 5, 3
    assert now() == (8, 2)
    second.num_requests = None
    assert now() == (8, 1)
    workers[1:] = [third]
    third.num_requests = 2
    assert now() == (10, 2)
    workers.clear()
    assert now() == (10, 0)
    names = [family.name for family in metrics.collect()]
    assert "tipserve_ready" not in names, "the supervisor's own is another"
    assert "process_cpu_seconds" in names


def test_a_reserved_port_is_shared_by_its_workers_only() -> None:
    held = reserve(("127.0.0.1", 0), ("127.0.0.1", 0))
    port = held[0].getsockname()[1]
    with socket.socket() as worker, socket.socket() as other:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind(("127.0.0.1", port))
        worker.listen()
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with pytest.raises(OSError, match=f"the workers cannot listen on 127.0.0.1, port {port}"):
            reserve(("127.0.0.1", 0), ("127.0.0.1", port))
    for sock in held:
        sock.close()
