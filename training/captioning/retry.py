"""Tries a call again when it failed for a while: longer and longer pauses, with chance in them.

The pause is never shorter than what the service asked for. What can be tried again, and what a
service asked for, is the caller's knowledge; it raises `Unavailable`.
"""

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from training.captioning.clock import Clock

T = TypeVar("T")


class Unavailable(Exception):
    """A call failed in a way that may pass.

    Attributes:
        asked_s: The pause in seconds that the service asked for, 0 where it asked for none.
    """

    def __init__(self, message: str, *, asked_s: float = 0.0) -> None:
        super().__init__(message)
        self.asked_s = asked_s


class Retry:
    """Calls functions with retries; may be used from several threads.

    `max_attempts` counts the first call too. The first pause is at most `first_delay_s`, each
    further one may be twice as long, and none is over `max_delay_s` unless the service asks for it.
    """

    def __init__(
        self,
        *,
        max_attempts: int,
        first_delay_s: float,
        max_delay_s: float,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        if max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
        if not 0 < first_delay_s <= max_delay_s:
            raise ValueError("first_delay_s must be over 0 and at most max_delay_s")
        self._max_attempts = max_attempts
        self._first_delay_s, self._max_delay_s = first_delay_s, max_delay_s
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()

    def call(self, function: Callable[[], T]) -> T:
        """Call a function until it raises no `Unavailable`, or the attempts are used up.

        Raises:
            Unavailable: The last attempt's.
            InterruptedError: The clock ended all waiting.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(Unavailable),
            stop=stop_after_attempt(self._max_attempts),
            wait=self._pause,
            sleep=self._clock.sleep,
            reraise=True,
        )
        return retrying(function)

    def _pause(self, state: RetryCallState) -> float:
        """Choose a pause in seconds: "full jitter", so that threads do not return together."""
        longest = min(self._max_delay_s, self._first_delay_s * 2.0 ** (state.attempt_number - 1))
        with self._lock:
            drawn = self._rng.uniform(0, longest)
        error = state.outcome.exception() if state.outcome is not None else None
        # The drawn pause comes on top, or all threads would return at the moment asked for.
        return drawn + (error.asked_s if isinstance(error, Unavailable) else 0.0)
