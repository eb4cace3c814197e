"""The door opens once, closes for good, and knows when nobody is inside."""

import threading

import pytest

from service.errors import Unavailable
from service.monitoring.metrics import Metrics
from service.request_gate import Door


@pytest.fixture
def door(metrics: Metrics) -> Door:
    made = Door(metrics)
    made.open()
    return made


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"tipserve_{name}", labels)


def test_nobody_is_let_in_before_the_start(metrics: Metrics) -> None:
    with pytest.raises(Unavailable) as caught, Door(metrics).enter():
        pass
    assert caught.value.retry_after_s
    assert sample(metrics, "rejected_total", reason="starting") == 1


def test_a_drain_refuses_newcomers_and_waits_for_the_rest(door: Door, metrics: Metrics) -> None:
    leave = threading.Event()
    inside = threading.Event()

    def stay() -> None:
        with door.enter():
            inside.set()
            assert leave.wait(10)

    guest = threading.Thread(target=stay)
    guest.start()
    assert inside.wait(10)
    door.drain()
    with pytest.raises(Unavailable):
        door.check()
    with pytest.raises(Unavailable), door.enter():
        pass
    assert sample(metrics, "rejected_total", reason="draining") == 2
    assert sample(metrics, "inflight") == 1
    assert not door.wait_idle(0)
    leave.set()
    assert door.wait_idle(10)
    guest.join(10)


def test_who_fails_inside_has_left(door: Door) -> None:
    with pytest.raises(KeyError), door.enter():
        raise KeyError
    assert door.wait_idle(0)


def test_draining_is_never_undone(door: Door) -> None:
    door.drain()
    door.open()
    assert not door.is_open


def test_who_is_to_leave_soon_still_lets_in_and_invites_nobody(door: Door) -> None:
    door.leave_soon()
    door.check()
    assert (door.is_open, door.is_inviting) == (True, False)


def test_what_never_opened_or_drains_already_leaves_at_once(door: Door, metrics: Metrics) -> None:
    starting = Door(metrics)
    door.drain()
    for one in (starting, door):
        one.leave_soon()
        one.open()
        assert not one.is_open
