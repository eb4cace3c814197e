"""Keeps a service's limits of requests and tokens a minute, among threads that share them."""

import threading
from collections import deque
from dataclasses import dataclass

from training.captioning.clock import Clock

_MINUTE_S = 60.0


@dataclass(slots=True, eq=False)
class Request:
    """A request that was let through: when, and how many tokens it is counted with."""

    at_s: float
    tokens: int


class RateLimit:
    """Lets requests through so that no minute, wherever it begins, holds more than is allowed.

    A bucket that refills would allow two minutes' worth within one minute, after a pause; a
    service that counts sliding minutes refuses that. All methods may be called from any thread.
    """

    def __init__(self, *, requests_per_minute: int, tokens_per_minute: int, clock: Clock) -> None:
        if requests_per_minute < 1 or tokens_per_minute < 1:
            raise ValueError("requests and tokens a minute must be at least 1")
        self._max_requests = requests_per_minute
        self._max_tokens = tokens_per_minute
        self._clock = clock
        self._requests: deque[Request] = deque()
        self._held_until_s = clock.now()
        self._state = threading.Lock()
        # Who waits keeps the turn, so that requests go in the order in which they came.
        self._turn = threading.Lock()

    def wait(self, tokens: int) -> Request:
        """Wait until a request of so many tokens may be sent, and count it as sent.

        Raises:
            ValueError: It has more tokens than any minute allows.
            InterruptedError: The clock ended all waiting.
        """
        if tokens > self._max_tokens:
            raise ValueError(
                f"one request has {tokens} tokens, more than tokens_per_minute {self._max_tokens}"
            )
        with self._turn:
            while True:
                with self._state:
                    now = self._clock.now()
                    delay_s = self._delay(now, tokens)
                    if delay_s <= 0:
                        request = Request(at_s=now, tokens=tokens)
                        self._requests.append(request)
                        return request
                self._clock.sleep(delay_s)

    def correct(self, request: Request, tokens: int) -> None:
        """Count a request with the tokens that it turned out to have."""
        with self._state:
            request.tokens = tokens

    def hold(self, seconds: float) -> None:
        """Let nothing through for some time: the service asked for a pause."""
        with self._state:
            self._held_until_s = max(self._held_until_s, self._clock.now() + seconds)

    def _delay(self, now: float, tokens: int) -> float:
        """Return how long to wait before looking again, 0 where the request may go."""
        while self._requests and self._requests[0].at_s <= now - _MINUTE_S:
            self._requests.popleft()
        if now < self._held_until_s:
            return self._held_until_s - now
        spent = sum(request.tokens for request in self._requests)
        if len(self._requests) < self._max_requests and spent + tokens <= self._max_tokens:
            return 0.0
        return self._requests[0].at_s + _MINUTE_S - now
