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
    Trickle,
    is_error,
    run_campaign,
)
from tests.hostile.wire import Attack, Books, Broken, Send

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

SECONDS = 8.0
GROUPS = ("documented", "grpc", "h2", "raw", "rest", "slow")
# gRPC's core starts a few threads of its own; a leak would be hundreds.
MORE_THREADS = 16


def test_the_service_survives_a_few_seconds_of_every_attack(
    run_service: Callable[..., Any],
) -> None:
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
def test_an_unexpected_answer_is_a_defect(
    send: Send, status: str, num_defects: int, num_hangs: int
) -> None:
    books = Books()
    books.make(Attack(kind="a", send=send, allowed=frozenset({"422"}), limit_s=60.0), seed=1)
    assert books.statuses["a"] == {status: 1}
    assert (books.num_defects.total(), books.hangs.total()) == (num_defects, num_hangs)


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
