"""Calls are tried again with growing pauses that chance spreads and the service may lengthen."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from training.captioning.gemini import Retry, Unavailable


class Fixed(random.Random):
    """Draws the longest pause always."""

    def uniform(self, a: float, b: float) -> float:
        return b


def retry(clock: Any, *, max_attempts: int = 6, rng: random.Random | None = None) -> Retry:
    return Retry(
        max_attempts=max_attempts,
        first_delay_s=2,
        max_delay_s=10,
        clock=clock,
        rng=rng or Fixed(),
    )


def failing(times: int, *, asked_s: float = 0) -> Callable[[], str]:
    left = iter(range(times))

    def call() -> str:
        if next(left, None) is not None:
            raise Unavailable("busy", asked_s=asked_s)
        return "answer"

    return call


def test_an_answer_needs_no_pause(clock: Any) -> None:
    assert retry(clock).call(failing(0)) == "answer"
    assert clock.slept_s == []


def test_pauses_grow_up_to_a_cap(clock: Any) -> None:
    assert retry(clock).call(failing(5)) == "answer"
    assert clock.slept_s == [2, 4, 8, 10, 10]


def test_pauses_are_drawn_below_their_cap(clock: Any) -> None:
    for seed in range(50):
        retry(clock, rng=random.Random(seed)).call(failing(1))
    assert all(0 <= pause <= 2 for pause in clock.slept_s)
    assert max(clock.slept_s) - min(clock.slept_s) > 1.5


def test_the_pause_asked_for_is_kept_and_spread(clock: Any) -> None:
    retry(clock).call(failing(1, asked_s=30))
    assert clock.slept_s == [32]


def test_it_gives_up(clock: Any) -> None:
    with pytest.raises(Unavailable, match="busy"):
        retry(clock, max_attempts=3).call(failing(9))
    assert len(clock.slept_s) == 2


def test_other_errors_are_not_tried_again(clock: Any) -> None:
    def call() -> None:
        raise KeyError("mistake")

    with pytest.raises(KeyError):
        retry(clock).call(call)
    assert clock.slept_s == []


@pytest.mark.parametrize(("attempts", "first_s"), [(0, 1.0), (1, 0.0), (1, 11.0)])
def test_wrong_settings_are_refused(clock: Any, attempts: int, first_s: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        Retry(
            max_attempts=attempts,
            first_delay_s=first_s,
            max_delay_s=10,
            clock=clock,
            rng=random.Random(),
        )
