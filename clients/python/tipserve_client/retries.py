"""When to try again, and how long to wait before it: within one deadline for all tries."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tipserve_client.errors import DeadlineExceeded, TipserveError


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How patient a client is.

    Every request is safe to send again, for it changes nothing on the server. Tried again is what
    the server has no room for or cannot take just now, and what could not be sent.

    Attributes:
        max_attempts: Tries in all; 1 never tries again.
        first_pause_s: Pause before the second try at the most; each one after it is twice as long.
        max_pause_s: The longest pause of our own.
    """

    max_attempts: int = 6
    first_pause_s: float = 0.1
    max_pause_s: float = 10.0


class Attempts:
    """The tries of one request; `clock` tells monotonic seconds, `draw` numbers from 0 to 1."""

    def __init__(
        self,
        retry: Retry,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._retry = retry
        self._clock, self._draw = clock, draw
        self._timeout_s = timeout_s
        self._deadline = clock() + timeout_s
        self._num_failed = 0

    def remaining_s(self) -> float:
        """Seconds until the deadline.

        Raises:
            DeadlineExceeded: It has passed.
        """
        left_s = self._deadline - self._clock()
        if left_s <= 0:
            raise DeadlineExceeded("The deadline passed.", code="deadline_exceeded")
        return left_s

    def pause_s(self, error: TipserveError) -> float:
        """How long to wait before the next try.

        Between half of the whole pause and all of it is drawn by chance, so that many callers do
        not come back at once; the time that the server asks for is waited on top.

        Raises:
            TipserveError: The error itself, where no further try is made.
        """
        self._num_failed += 1
        if not error.can_be_tried_again or self._num_failed >= self._retry.max_attempts:
            raise error
        longest_s = self._retry.first_pause_s * 2.0 ** (self._num_failed - 1)
        pause_s: float = min(longest_s, self._retry.max_pause_s) * (0.5 + 0.5 * self._draw())
        pause_s += error.retry_after_s or 0.0
        if pause_s >= self._deadline - self._clock():
            raise error
        return pause_s

    def begin(self) -> None:
        """A stream awaits an answer: all the time is there, unless a try for it has failed before.

        So the time counts in which the server is awaited, and not that of the caller, who may take
        as long as they want between two answers.
        """
        if self._num_failed == 0:
            self._deadline = self._clock() + self._timeout_s

    def progress(self) -> None:
        """A stream got something answered: what failed before counts no more."""
        self._num_failed = 0
