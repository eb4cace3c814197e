"""One model's share of what is counted for all of them."""

import threading
from collections import Counter as Count
from collections.abc import Mapping

from prometheus_client import Counter


class ModelCounter:
    """Counts for one model, and for all in a counter with one label. Thread-safe.

    The model's own numbers go when it goes; a series of its name would stay for ever.
    """

    def __init__(self, of_all: Counter) -> None:
        self._of_all = of_all
        self._lock = threading.Lock()
        self._own: Count[str] = Count()

    def inc(self, reason: str, count: int = 1) -> None:
        """Count so many for a reason."""
        with self._lock:
            self._own[reason] += count
        self._of_all.labels(reason).inc(count)

    def totals(self) -> Mapping[str, int]:
        """The model's own, by reason."""
        with self._lock:
            return dict(self._own)
