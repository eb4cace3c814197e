"""Closed forms against numbers that textbooks print and against their own limits."""

import math

import pytest

from benchmarks.autoscaling.queueing import Queue, erlang_c, highest_utilisation


@pytest.mark.parametrize(
    ("servers", "load", "expected"),
    [
        (1, 0.7, 0.7),  # M/M/1: the share of time that the server is busy
        (2, 1.0, 1 / 3),
        (10, 8.0, 0.4092),
        (3, 0.0, 0.0),
        (2, 2.5, 1.0),
    ],
)
def test_erlang_c(servers: int, load: float, expected: float) -> None:
    assert erlang_c(servers, load) == pytest.approx(expected, abs=1e-4)


def test_thousands_of_servers_overflow_nothing() -> None:
    assert 0 < erlang_c(5_000, 4_900) < 1


@pytest.mark.parametrize(("servers", "load"), [(0, 1.0), (2, -0.1)])
def test_impossible_queues_are_refused(servers: int, load: float) -> None:
    with pytest.raises(ValueError, match="servers"):
        erlang_c(servers, load)


def test_one_exponential_server() -> None:
    queue = Queue(servers=1, rate=8.0, service_s=0.1)
    assert queue.mean_wait_s == pytest.approx(0.4)  # rho / (mu - lambda)
    assert queue.wait_s(0.99) == pytest.approx(math.log(0.8 / 0.01) / 2)
    assert queue.wait_s(0.1) == 0.0, "a fifth does not wait at all"


def test_service_without_variation_halves_the_wait() -> None:
    # Pollaczek and Khinchine, for one server.
    assert Queue(servers=1, rate=8.0, service_s=0.1, service_cv2=0).mean_wait_s == pytest.approx(
        0.2
    )


def test_too_much_waits_for_ever() -> None:
    queue = Queue(servers=2, rate=21.0, service_s=0.1)
    assert math.isinf(queue.mean_wait_s)
    assert math.isinf(queue.wait_s(0.5))


def test_more_servers_can_be_used_more() -> None:
    shares = [highest_utilisation(servers, 0.99, 1.0) for servers in (1, 2, 8, 32)]
    assert shares == sorted(shares)
    assert 0.05 < shares[0] < shares[-1] < 1.0
    queue = Queue(servers=8, rate=8 * shares[2], service_s=1.0, service_cv2=0.0)
    assert queue.wait_s(0.99) == pytest.approx(1.0, rel=1e-6)
