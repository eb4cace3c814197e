"""A few seconds of the campaign of `python -m tests.hostile.campaign`."""

import random
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.hostile.campaign import (
    Attacked,
    Failed,
    GoodAnswers,
    Plan,
    Refused,
    Sample,
    Trickle,
    VitalSigns,
    distance,
    is_error,
    run_campaign,
)
from tests.hostile.wire import Attack, Books, Broken, HttpAnswer, Send, check_error

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

SECONDS = 8.0
GROUPS = ("documented", "grpc", "h2", "raw", "rest", "slow")
# gRPC's core starts a few threads of its own; a leak would be hundreds.
MORE_THREADS = 16


@pytest.mark.slow
def test_the_service_stands_a_few_seconds_of_everything(run_service: Callable[..., Any]) -> None:
    with run_service("--client-timeout-s=1") as running:
        service: Service = running
        ports = service.ports
        attacked = Attacked(
            service.program.process.pid, ports["http"], ports["grpc"], ports["metrics"]
        )
        outcome = run_campaign(attacked, Plan(seconds=SECONDS, seed=1, num_slow=5))
        errors = [line for line in service.program.log if line[:1] == "{" and is_error(line)]
    books, good = outcome.books, outcome.good
    assert books.defects == {}
    assert not books.hangs
    assert {kind.split(" ")[0] for kind in books.statuses} == set(GROUPS)
    assert (good.count("wrong"), good.count("failed")) == (0, 0), good.complaints
    assert {protocol for protocol, counts in good.outcomes.items() if counts["right"]} == {
        "REST",
        "gRPC",
    }
    assert outcome.is_alive
    assert outcome.signs.num_not_ready == 0
    assert outcome.num_inside == 0
    assert outcome.end.num_descriptors <= outcome.start.num_descriptors
    assert outcome.end.num_threads <= outcome.start.num_threads + MORE_THREADS
    assert errors == []


def raising(error: Exception) -> Send:
    def send(rng: random.Random) -> str:
        raise error

    return send


@pytest.mark.parametrize(
    ("send", "status", "num_defects", "num_hangs"),
    [
        (lambda rng: "422", "422", 0, 0),
        (lambda rng: "500", "500", 1, 0),
        (raising(ConnectionResetError()), "closed", 1, 0),
        (raising(TimeoutError()), "hang", 1, 1),
        (raising(Broken("tells too much")), "broken", 1, 0),
    ],
)
def test_what_may_not_be_is_a_defect(
    send: Send, status: str, num_defects: int, num_hangs: int
) -> None:
    books = Books()
    books.make(Attack(kind="a", send=send, allowed=frozenset({"422"}), limit_s=60.0), seed=1)
    assert books.statuses["a"] == {status: 1}
    assert (books.num_defects.total(), books.hangs.total()) == (num_defects, num_hangs)


@pytest.mark.parametrize(
    ("body", "is_right"),
    [
        (b'{"error": {"message": "m", "type": "t", "code": "c", "param": null}}', True),
        (b'{"detail": "Not Found"}', False),
        (b"Internal Server Error", False),
        (
            b'{"error": {"message": "KeyError: x in a.py", "type": "", "code": "", "param": 0}}',
            False,
        ),
    ],
)
def test_an_error_in_another_form_is_broken(body: bytes, is_right: bool) -> None:
    answer = HttpAnswer("422", {}, body)
    if is_right:
        check_error(answer)
    else:
        with pytest.raises(Broken):
            check_error(answer)


def test_good_answers_are_compared_with_those_at_the_start() -> None:
    first = {"a": np.array([0.5, 0.25], np.float32)}
    later = iter([first, {"a": np.array([0.25, 0.5], np.float32)}, Refused(), first, Failed("500")])
    books, stop = GoodAnswers(), threading.Event()

    def ask() -> Any:
        answer = next(later, None)
        if answer is None:
            stop.set()
            return first
        if isinstance(answer, Exception):
            raise answer
        return answer

    trickle = Trickle("REST", {"x": ask}, books)
    trickle.learn()
    trickle.ask_until(stop, 0.0)
    counted = {"wrong": 1, "refused, asked again": 1, "failed": 1, "right": 2}
    assert books.outcomes["REST"] == counted


def test_arrays_of_another_form_or_without_numbers_are_infinitely_far() -> None:
    known = {"a": np.zeros((2, 2), np.float32)}
    assert distance(known, {"a": np.zeros((2, 2), np.float32)}) == 0
    assert distance(known, {"a": np.zeros(4, np.float32)}) == np.inf
    assert distance(known, {"b": known["a"]}) == np.inf
    assert distance(known, {"a": np.full((2, 2), np.nan, np.float32)}) == np.inf


@pytest.mark.parametrize(("growth", "is_leak"), [(0.0, False), (2.0, True)])
def test_a_leak_is_told_from_noise(growth: float, is_leak: bool) -> None:
    draw = np.random.default_rng(0)
    signs = VitalSigns(pid=0, http_port=0)
    level = 0.0
    for second in range(600):
        level = 0.9 * level + draw.normal()
        rss_mib = 300 + level + growth * second / 60
        signs.samples.append(Sample(float(second), rss_mib, 10, 10))
    slope = signs.slope(120.0)
    assert slope.is_within_noise is not is_leak
    assert abs(slope.mib_per_min - growth) < 3 * slope.standard_error
