"""No minute, wherever it begins, holds more requests or tokens than are allowed."""

import random
import threading
from typing import Any

import pytest

from training.captioning.gemini import RateLimit


def limit(clock: Any, *, requests: int = 1000, tokens: int = 1_000_000) -> RateLimit:
    return RateLimit(requests_per_minute=requests, tokens_per_minute=tokens, clock=clock)


def busiest_minute(sent: list[tuple[float, int]]) -> tuple[int, int]:
    """The most requests and the most tokens in any 60 s."""
    windows = [[t for at, t in sent if start <= at < start + 60] for start, _ in sent]
    return max(map(len, windows)), max(map(sum, windows))


def test_what_is_allowed_goes_at_once(clock: Any) -> None:
    rate = limit(clock, requests=3)
    for _ in range(3):
        rate.wait(1)
    assert clock.slept_s == []


def test_the_next_one_waits_for_the_first_to_be_a_minute_old(clock: Any) -> None:
    rate = limit(clock, requests=2)
    rate.wait(1)
    clock.sleep(10)
    rate.wait(1)
    rate.wait(1)
    assert clock.slept_s == [10, 50]


def test_tokens_are_limited_too(clock: Any) -> None:
    rate = limit(clock, tokens=100)
    for tokens in (60, 40, 1):
        rate.wait(tokens)
    assert clock.slept_s == [60]


def test_no_minute_holds_too_much(clock: Any) -> None:
    rng, rate = random.Random(0), limit(clock, requests=7, tokens=500)
    sent = []
    for _ in range(200):
        if rng.random() < 0.2:
            clock.sleep(rng.uniform(0, 90))
        tokens = rng.randint(1, 200)
        sent.append((rate.wait(tokens).at_s, tokens))
    requests, tokens = busiest_minute(sent)
    assert requests <= 7
    assert tokens <= 500
    assert requests == 7 or tokens > 400  # and it does not idle


def test_a_request_counts_with_what_it_turned_out_to_have(clock: Any) -> None:
    rate = limit(clock, tokens=100)
    rate.correct(rate.wait(90), 10)
    rate.wait(90)
    assert clock.slept_s == []
    rate.wait(1)
    assert clock.slept_s == [60]


def test_nothing_goes_while_the_service_wants_a_pause(clock: Any) -> None:
    rate = limit(clock)
    rate.hold(7)
    rate.hold(3)
    rate.wait(1)
    assert clock.slept_s == [7]


def test_what_never_fits_is_refused(clock: Any) -> None:
    with pytest.raises(ValueError, match="101 tokens"):
        limit(clock, tokens=100).wait(101)
    with pytest.raises(ValueError, match="at least 1"):
        limit(clock, requests=0)


def test_threads_share_it(clock: Any) -> None:
    rate, sent = limit(clock, requests=5), []

    def ask() -> None:
        for _ in range(5):
            sent.append((rate.wait(1).at_s, 1))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(sent) == 20
    assert busiest_minute(sent)[0] == 5


def test_waiting_ends_when_the_job_does(clock: Any) -> None:
    rate = limit(clock, requests=1)
    rate.wait(1)
    clock.interrupt()
    with pytest.raises(InterruptedError):
        rate.wait(1)
