"""The gate opens once, closes for good, and knows when nobody is inside."""

import threading

import pytest

from service.errors import Unavailable
from service.monitoring.metrics import Metrics
from service.request_gate import RequestGate


@pytest.fixture
def gate(metrics: Metrics) -> RequestGate:
    made = RequestGate(metrics)
    made.open()
    return made


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"tipserve_{name}", labels)


def test_nobody_is_let_in_before_the_start(metrics: Metrics) -> None:
    with pytest.raises(Unavailable) as caught, RequestGate(metrics).enter():
        pass
    assert caught.value.retry_after_s
    assert sample(metrics, "rejected_total", reason="starting") == 1


def test_a_drain_refuses_newcomers_and_waits_for_the_rest(
    gate: RequestGate, metrics: Metrics
) -> None:
    leave = threading.Event()
    inside = threading.Event()

    def stay() -> None:
        with gate.enter():
            inside.set()
            assert leave.wait(10)

    guest = threading.Thread(target=stay)
    guest.start()
    assert inside.wait(10)
    gate.drain()
    with pytest.raises(Unavailable):
        gate.check()
    with pytest.raises(Unavailable), gate.enter():
        pass
    assert sample(metrics, "rejected_total", reason="draining") == 2
    assert sample(metrics, "inflight") == 1
    assert not gate.wait_idle(0)
    leave.set()
    assert gate.wait_idle(10)
    guest.join(10)


def test_who_fails_inside_has_left(gate: RequestGate) -> None:
    with pytest.raises(KeyError), gate.enter():
        raise KeyError
    assert gate.wait_idle(0)


def test_draining_is_never_undone(gate: RequestGate) -> None:
    gate.drain()
    gate.open()
    assert not gate.is_open


def test_who_is_to_leave_soon_still_lets_in_and_invites_nobody(gate: RequestGate) -> None:
    gate.announce_drain()
    gate.check()
    assert (gate.is_open, gate.is_ready) == (True, False)


def test_what_never_opened_or_drains_already_leaves_at_once(
    gate: RequestGate, metrics: Metrics
) -> None:
    starting = RequestGate(metrics)
    gate.drain()
    for one in (starting, gate):
        one.announce_drain()
        one.open()
        assert not one.is_open
