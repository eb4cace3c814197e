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
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        parse: Callable[[Sequence[bytes]], Value],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        """Read the files.

        Args:
            name: Of the value, for the log.
            paths: The files.
            parse: Makes the value of their contents; raises `ValueError`.
            clock: Decides when to look again.

        Raises:
            ValueError: The files are invalid.
            OSError: One of them cannot be read.
        """
        self._name, self._paths, self._parse, self._clock = name, paths, parse, clock
        self._lock = Lock()
        self._next = clock() + INTERVAL_S
        contents = [path.read_bytes() for path in paths]
        self._seen: Sequence[bytes | None] = contents
        self._value = parse(contents)

    def current(self) -> Value:
        """The value now; the last good one while the files are invalid."""
        if self._clock() >= self._next:
            with self._lock:
                if self._clock() >= self._next:
                    self._next = self._clock() + INTERVAL_S
                    self._look_again()
        return self._value

    def _look_again(self) -> None:
        before, self._seen = self._seen, [_read(path) for path in self._paths]
        if self._seen == before:
            return
        try:
            self._value = self._parse([path.read_bytes() for path in self._paths])
            logger.info("read %s again", self._name)
        except (OSError, ValueError) as error:
            logger.error("%s did not change: %s", self._name, error)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
