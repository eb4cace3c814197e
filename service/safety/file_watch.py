"""Tells when files have changed, cheaply enough to be asked for every request.

Kubernetes renews a mounted Secret by turning a symbolic link; links are followed, so that counts.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Final

from service.call import Clock

INTERVAL_S: Final = 1.0

# What a file is known by; None where it cannot be reached.
Signature = tuple[int, int, int, int, int] | None


class FileWatch:
    """Looks at most once in an interval. Thread-safe."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        interval_s: float = INTERVAL_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self._paths = tuple(paths)
        self._interval_s = interval_s
        self._clock = clock
        self._lock = Lock()
        self._seen = self._signatures()
        self._next = clock() + interval_s

    def has_changed(self) -> bool:
        """Whether any file is another than before; true once for each change.

        Make the watch before the files are first read: a change in between is then seen later.
        """
        now = self._clock()
        if now < self._next:
            return False
        with self._lock:
            if now < self._next:
                return False
            self._next = now + self._interval_s
            signatures = self._signatures()
            changed = signatures != self._seen
            self._seen = signatures
            return changed

    def _signatures(self) -> tuple[Signature, ...]:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> Signature:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
