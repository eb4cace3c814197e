"""Bounds the bytes of request bodies that are held at once, over all connections of both protocols.

Whoever does not fit is refused at once with a time to come back, and not made to wait: a body of
unknown length that waited with half of it read would hold what another waits for. Only streams of
messages wait, of which each is here as a whole.
"""

import threading
from types import TracebackType
from typing import Final, Self

from service.errors import Overloaded
from service.monitoring.observability import Metrics

RETRY_S: Final = 1.0


class BodyShare:
    """What one request holds, until its `with` block ends."""

    def __init__(self, memory: "BodyMemory") -> None:
        self._memory = memory
        self.num_bytes = 0

    def hold(self, num_bytes: int) -> None:
        """Hold at least so many bytes in all.

        Raises:
            Overloaded: They do not fit beside what others hold.
        """
        if num_bytes > self.num_bytes:
            self._memory._take(num_bytes - self.num_bytes)
            self.num_bytes = num_bytes

    def give_back(self) -> None:
        """Hold nothing more."""
        self._memory._give_back(self.num_bytes)
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give_back()


class BodyMemory:
    """Counts what all requests hold. Thread-safe."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._metrics = metrics

    @property
    def num_bytes(self) -> int:
        """Bytes that are held now."""
        return self._num_bytes

    def share(self) -> BodyShare:
        """What a new request holds: nothing yet."""
        return BodyShare(self)

    def has_room(self, num_bytes: int) -> bool:
        """Whether so many more fit just now, for those who can wait."""
        return self._num_bytes + num_bytes <= self._max_bytes

    def check(self) -> None:
        """Refuse where nothing more fits, for a body whose length is not known before it is here.

        Raises:
            Overloaded: All is taken.
        """
        if self._num_bytes >= self._max_bytes:
            raise self._full()

    def _take(self, num_bytes: int) -> None:
        with self._lock:
            if self._num_bytes + num_bytes > self._max_bytes:
                raise self._full()
            self._num_bytes += num_bytes

    def _give_back(self, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes -= num_bytes

    def _full(self) -> Overloaded:
        self._metrics.rejected.labels("body_memory").inc()
        return Overloaded(
            "The bodies of other requests fill the memory for them; try again.",
            code="body_memory_full",
            retry_after_s=RETRY_S,
        )
