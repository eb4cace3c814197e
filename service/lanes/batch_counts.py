"""How many batches of each size one model's lanes have computed, and how long they took."""

import threading
from collections.abc import Mapping


class BatchCounts:
    """Thread-safe: every lane counts here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[int, tuple[int, float]] = {}

    def observe(self, num_items: int, seconds: float) -> None:
        """Count one batch that came out well."""
        with self._lock:
            count, total_s = self._totals.get(num_items, (0, 0.0))
            self._totals[num_items] = count + 1, total_s + seconds

    def totals(self) -> Mapping[int, tuple[int, float]]:
        """By number of items, how many batches there were and their seconds together."""
        with self._lock:
            return dict(sorted(self._totals.items()))
