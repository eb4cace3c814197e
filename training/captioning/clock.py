"""Time as the jobs see it, so that tests wait for nothing."""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Something that knows how late it is and can wait."""

    def now(self) -> float:
        """Return seconds since some fixed moment; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            InterruptedError: `interrupt` was or is called.
        """

    def interrupt(self) -> None:
        """Wake all who sleep, and let nobody sleep again."""


class SystemClock:
    """The machine's clock; its sleepers can be woken from another thread."""

    def __init__(self) -> None:
        self._interrupted = threading.Event()

    def now(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for an event that only `interrupt` brings."""
        if self._interrupted.wait(seconds):
            raise InterruptedError("the job is ending")

    def interrupt(self) -> None:
        """Wake all who sleep, and let nobody sleep again."""
        self._interrupted.set()
