"""Log lines on their way out, by a thread of their own.

Whoever reads the log may be slow or stuck; a request is never made to wait for it. Lines are
gathered and written many at a time, and beyond a bound they are dropped and counted.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

MAX_LINES: Final = 10_000
# How long lines are gathered before they are written together: less than a person notices.
GATHER_S: Final = 0.05
LINES_PER_WRITE: Final = 1000

Line = str | Callable[[], str]

logger = logging.getLogger(__name__)


class LineWriter:
    """Writes lines to a stream in the order in which they were put. Thread-safe."""

    def __init__(self, stream: TextIO, *, max_lines: int = MAX_LINES) -> None:
        self._stream = stream
        self._max_lines = max_lines
        self._waiting: deque[Line] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._count_lock = threading.Lock()
        self._num_dropped = 0
        self._num_told = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def num_dropped(self) -> int:
        """Lines that were not written."""
        return self._num_dropped

    def put(self, line: Line) -> None:
        """Write a line, with its line end, soon; a function is called for it in the thread."""
        if len(self._waiting) >= self._max_lines:
            self._drop(1)
            return
        self._waiting.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout_s: float) -> bool:
        """Write what waits and end; False where the stream did not take it in time."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(GATHER_S)
            self._wake.clear()
            self._write_waiting()
            if self._num_dropped > self._num_told:
                num_lines, self._num_told = self._num_dropped - self._num_told, self._num_dropped
                logger.warning("log lines were dropped", extra={"fields": {"lines": num_lines}})
        self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            num_lines = min(len(self._waiting), LINES_PER_WRITE)
            lines = [self._waiting.popleft() for _ in range(num_lines)]
            try:
                self._stream.write("".join(e if isinstance(e, str) else e() for e in lines))
                self._stream.flush()
            except (OSError, ValueError):
                # The reader is gone, or the stream was closed: nobody is left to be told.
                self._drop(num_lines)
                self._num_told = self._num_dropped

    def _drop(self, num_lines: int) -> None:
        with self._count_lock:
            self._num_dropped += num_lines
