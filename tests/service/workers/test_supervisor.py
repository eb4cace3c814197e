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
from service.workers.supervisor import Supervisor, WorkerMetrics, reserve


class FakeWorker:
    """A worker whose health and metrics a test sets."""

    def __init__(self, *, ready: bool | None = True, live: bool | None = True) -> None:
        self.answers = {READY: ready, LIVE: live}
        self.has_joined = bool(ready)
        self.has_answered = ready is not None
        self.signals: list[int] = []
        self.num_requests: int | None = 0
        self.fields = {"worker": 0, "pid": 1}

    def ask(self, path: str) -> bool | None:
        return self.answers[path]

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def scrape(self) -> list[Metric] | None:
        if self.num_requests is None:
            return None
        return [
            CounterMetricFamily("requests", "text", self.num_requests),
            GaugeMetricFamily("inflight", "text", 1),
            GaugeMetricFamily("tipserve_ready", "text", 1),
        ]


async def supervisor_of(workers: Sequence[FakeWorker]) -> Supervisor:
    settings = Settings(workers=2, host="127.0.0.1", http_port=0, grpc_port=0, metrics_port=0)
    made: Any = Supervisor(settings, lambda _: [])
    made._workers = dict(enumerate(workers))
    made._server.close()
    for sock in made._reserved:
        sock.close()
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("workers", "is_ready"),
    [
        ([(None, None)], False),  # it starts
        ([(True, True), (None, None)], True),  # one starts, or has ended
        ([(True, True), (False, True)], True),  # one loads its model and does not listen
        ([(False, True)], False),
        ([], False),
    ],
)
async def test_the_server_is_ready_when_a_worker_listens_and_can_answer(
    workers: list[tuple[bool | None, bool | None]], is_ready: bool
) -> None:
    made = await supervisor_of([FakeWorker(ready=r, live=v) for r, v in workers])
    assert is_ready == await asyncio.to_thread(passes, made._check_ready)


def passes(check: Any) -> bool:
    try:
        check()
    except Unavailable:
        return False
    return True


async def test_a_listening_worker_that_cannot_answer_fails_readiness() -> None:
    workers = [FakeWorker(), FakeWorker()]
    made = await supervisor_of(workers)
    assert passes(made._check_ready)
    workers[0].answers[READY] = False
    assert not passes(made._check_ready)
    workers[0].answers[READY] = True
    made.stop()
    assert not passes(made._check_ready)
    assert [worker.signals for worker in workers] == [[signal.SIGTERM]] * 2


async def test_a_worker_that_joins_while_it_is_asked_ends_no_readiness() -> None:
    class Joining(FakeWorker):
        def ask(self, path: str) -> bool | None:
            found = self.answers[path]
            self.has_joined = True
            return found

    made = await supervisor_of([FakeWorker(), Joining(ready=False)])
    assert passes(made._check_ready)


async def test_the_server_lives_while_one_worker_starts_or_lives() -> None:
    dead, starting = FakeWorker(live=False), FakeWorker(ready=None, live=None)
    assert passes((await supervisor_of([dead, starting]))._check_live)
    assert passes((await supervisor_of([dead, FakeWorker()]))._check_live)
    assert not passes((await supervisor_of([dead]))._check_live)
    assert not passes((await supervisor_of([]))._check_live)


async def test_a_worker_that_is_not_live_for_a_minute_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "LIVE_INTERVAL_S", 0.0)
    workers: list[Any] = [FakeWorker(), FakeWorker(live=False)]
    made = await supervisor_of(workers)
    live, dead = (asyncio.ensure_future(made._watch(worker)) for worker in workers)
    async with asyncio.timeout(20):
        await dead
    live.cancel()
    assert [worker.signals for worker in workers] == [[], [signal.SIGKILL]]


def value(families: list[Metric], name: str) -> float:
    found = [family for family in families if family.name == name]
    return float(sum(sample.value for family in found for sample in family.samples))


async def test_counts_never_fall_when_a_worker_ends_or_is_silent() -> None:
    first, second, third = (FakeWorker() for _ in range(3))
    workers: list[Any] = [first, second]
    metrics = WorkerMetrics(lambda: list(workers))
    first.num_requests, second.num_requests = 5, 3
    now = metrics.collect()
    assert (value(now, "requests"), value(now, "inflight")) == (8, 2)
    second.num_requests = None
    now = metrics.collect()
    assert (value(now, "requests"), value(now, "inflight")) == (8, 1)
    workers[1:] = [third]
    third.num_requests = 2
    now = metrics.collect()
    assert (value(now, "requests"), value(now, "inflight")) == (10, 2)
    workers.clear()
    assert value(metrics.collect(), "requests") == 10
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
    with pytest.raises(OSError, match="are the same"):
        reserve(("127.0.0.1", port), ("127.0.0.1", port))
