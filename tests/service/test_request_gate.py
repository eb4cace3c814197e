"""The gate opens once, closes for good, and counts the requests in flight."""

import threading

import pytest

from service.errors import Unavailable
from service.monitoring.metrics import Metrics
from service.request_gate import RequestGate
from tests.service.conftest import sample


@pytest.fixture
def gate(metrics: Metrics) -> RequestGate:
    made = RequestGate(metrics)
    made.open()
    return made


def test_no_request_is_accepted_before_the_start(metrics: Metrics) -> None:
    with pytest.raises(Unavailable) as caught:
        RequestGate(metrics).enter()
    assert caught.value.retry_after_s
    assert sample(metrics, "rejected_total", reason="starting") == 1


def test_a_drain_rejects_new_requests_and_waits_for_those_in_flight(
    gate: RequestGate, metrics: Metrics
) -> None:
    gate.enter()
    gate.drain()
    for reject in (gate.check, gate.enter):
        with pytest.raises(Unavailable):
            reject()
    assert sample(metrics, "rejected_total", reason="draining") == 2
    assert sample(metrics, "inflight") == gate.num_in_flight == 1
    assert not gate.wait_idle(0)
    threading.Thread(target=gate.leave).start()
    assert gate.wait_idle(10)


def test_an_announced_drain_fails_readiness_and_still_accepts_requests(gate: RequestGate) -> None:
    gate.announce_drain()
    gate.check()
    assert (gate.is_open, gate.is_ready) == (True, False)


def test_a_gate_that_never_opened_or_drains_already_closes_at_once(
    gate: RequestGate, metrics: Metrics
) -> None:
    starting = RequestGate(metrics)
    gate.drain()
    for one in (starting, gate):
        one.announce_drain()
        one.open()
        assert not one.is_open
