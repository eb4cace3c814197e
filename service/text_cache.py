"""Embeddings of prompts that were asked for lately, so that known class names cost nothing.

The key is the prompt after its template, which serves every template set. Shape legend: D width.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from service.observability import Metrics


class TextCache:
    """A bounded map from prompt to raw embedding [D]. Thread-safe.

    The least recently used one goes first.
    """

    def __init__(self, max_entries: int, metrics: Metrics) -> None:
        self._max_entries = max_entries
        self._metrics = metrics
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def find(self, prompts: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """Those of the prompts that are known, each once."""
        wanted = dict.fromkeys(prompts)
        with self._lock:
            found = {p: self._entries[p] for p in wanted if p in self._entries}
            for prompt in found:
                self._entries.move_to_end(prompt)
        self._metrics.text_cache_hits.inc(len(found))
        self._metrics.text_cache_misses.inc(len(wanted) - len(found))
        return found

    def add(self, embeddings: dict[str, NDArray[np.float32]]) -> None:
        """Keep these, at the cost of the least recently used."""
        with self._lock:
            self._entries.update(embeddings)
            for prompt in embeddings:
                self._entries.move_to_end(prompt)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)
