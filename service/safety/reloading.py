"""What small files hold, read again when they change."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Final, Generic, TypeVar

from service.call import Clock

INTERVAL_S: Final = 1.0
Value = TypeVar("Value")
logger = logging.getLogger(__name__)


class Reloaded(Generic[Value]):
    """The newest good value of files, looked at once a second. Thread-safe.

    Kubernetes renews a mounted Secret by replacing a symbolic link, so contents are compared.

    Args:
        name: Of the value, for the log.
        paths: The files.
        parse: Makes the value of their contents; raises `ValueError`.
        clock: Decides when to look again.

    Raises:
        ValueError: The files are invalid.
        OSError: One of them cannot be read.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        parse: Callable[[Sequence[bytes]], Value],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._name, self._paths, self._parse, self._clock = name, paths, parse, clock
        self._lock = Lock()
        self._next = clock() + INTERVAL_S
        self._seen: Sequence[bytes] | str = [path.read_bytes() for path in paths]
        self._value = parse(self._seen)

    def current(self) -> Value:
        """The value now; the last good one while the files are invalid."""
        with self._lock:
            now = self._clock()
            if now >= self._next:
                self._next = now + INTERVAL_S
                self._look_again()
            return self._value

    def _look_again(self) -> None:
        before = self._seen
        try:
            contents = [path.read_bytes() for path in self._paths]
            self._seen = contents
            if contents != before:
                self._value = self._parse(contents)
                logger.info("read %s again", self._name)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                self._seen = str(error)
            if self._seen != before:  # said once
                logger.error("%s did not change: %s", self._name, error)
