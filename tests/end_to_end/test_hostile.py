"""A few seconds of `python -m tests.hostile.campaign`, and how it judges answers."""

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.hostile.attack import Attack, Books, Broken, Send
from tests.hostile.campaign import Plan, is_error, run_campaign
from tests.hostile.good_requests import Trickle
from tests.processes.service_process import running_service
from tipserve_client import InternalError, Overloaded

SECONDS = 8.0
GROUPS = {"documented", "good", "grpc", "h2", "raw", "rest", "slow"}
# gRPC's core starts a few threads of its own; a leak would be hundreds.
MORE_THREADS = 16


def test_the_service_survives_a_few_seconds_of_every_attack(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    with running_service(
        "--model=bundled-student", "--client-timeout-s=1", log_path=log
    ) as service:
        outcome = run_campaign(service, Plan(seconds=SECONDS, seed=1, num_slow=5))
    books = outcome.books
    assert books.defects == {}
    assert not books.hangs
    assert {kind.split(" ")[0] for kind in books.statuses} == GROUPS
    assert books.statuses["good REST"]["right"]
    assert books.statuses["good gRPC"]["right"]
    assert outcome.is_alive
    assert outcome.signs.num_not_ready == 0
    assert outcome.num_inside == 0
    assert outcome.end.num_descriptors <= outcome.start.num_descriptors
    assert outcome.end.num_threads <= outcome.start.num_threads + MORE_THREADS
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line[:1] == "{" and is_error(line)] == []


def raising(error: Exception) -> Send:
    def send(rng: random.Random, limit_s: float) -> str:
        raise error

    return send


@pytest.mark.parametrize(
    ("send", "status", "num_defects", "num_hangs"),
    [
        (lambda rng, limit_s: "422", "422", 0, 0),
        (lambda rng, limit_s: "500", "500", 1, 0),
        (raising(ConnectionResetError()), "closed", 1, 0),
        (raising(TimeoutError()), "hang", 1, 1),
        (raising(Broken("reveals too much")), "broken", 1, 0),
    ],
)
def test_an_unexpected_answer_is_a_defect(
    send: Send, status: str, num_defects: int, num_hangs: int
) -> None:
    books = Books()
    books.make(Attack("a", send, frozenset({"422"}), 60.0), seed=1)
    assert books.statuses["a"] == {status: 1}
    assert (books.num_defects.total(), books.hangs.total()) == (num_defects, num_hangs)


def test_good_answers_are_compared_with_those_at_the_start() -> None:
    first, other = np.array([0.5, 0.25], np.float32), np.array([0.25, 0.5], np.float32)
    errors: list[Any] = [Overloaded("busy"), first, InternalError("500")]
    later = iter([first, other, *errors])
    books, stop = Books(), threading.Event()

    def ask() -> NDArray[Any]:
        answer: Any = next(later, None)
        if answer is None:
            stop.set()
        if isinstance(answer, Exception):
            raise answer
        return first if answer is None else np.asarray(answer)

    Trickle("good", {"x": ask}, books).ask_until(stop, 0.0)
    assert books.statuses["good"] == {"wrong": 1, "refused": 1, "failed": 1, "right": 2}
    assert books.num_defects.total() == 2
