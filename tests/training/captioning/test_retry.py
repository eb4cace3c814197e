"""Retries: random pauses with a growing bound, plus the pause that the service asks for."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from training.captioning.gemini import Unavailable, call_with_retries
from training.captioning.gemini_config import GeminiLimits

LIMITS = GeminiLimits(max_attempts=6, first_delay_s=2, max_delay_s=10)


def failing(times: int, *, asked_s: float = 0) -> Callable[[], str]:
    left = iter(range(times))

    def call() -> str:
        if next(left, None) is not None:
            raise Unavailable("busy", asked_s=asked_s)
        return "answer"

    return call


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pause is the longest that may be drawn."""
    monkeypatch.setattr(random, "uniform", lambda _, high: high)


@pytest.mark.usefixtures("longest")
@pytest.mark.parametrize(
    ("failures", "asked_s", "pauses"),
    [(0, 0, []), (5, 0, [2, 4, 8, 10, 10]), (1, 30, [32])],
)
def test_pauses_grow_up_to_a_bound_on_top_of_what_is_asked(
    clock: Any, failures: int, asked_s: float, pauses: list[float]
) -> None:
    assert call_with_retries(failing(failures, asked_s=asked_s), LIMITS, clock) == "answer"
    assert clock.slept_s == pauses


def test_pauses_are_random(clock: Any) -> None:
    for _ in range(50):
        call_with_retries(failing(1), LIMITS, clock)
    assert all(0 <= pause <= 2 for pause in clock.slept_s)
    assert max(clock.slept_s) - min(clock.slept_s) > 0.5


def test_it_gives_up_after_the_last_attempt(clock: Any) -> None:
    with pytest.raises(Unavailable, match="busy"):
        call_with_retries(failing(9), GeminiLimits(max_attempts=3), clock)
    assert len(clock.slept_s) == 2


def test_other_errors_are_raised_at_once(clock: Any) -> None:
    def call() -> None:
        raise KeyError("mistake")

    with pytest.raises(KeyError):
        call_with_retries(call, LIMITS, clock)
    assert clock.slept_s == []
