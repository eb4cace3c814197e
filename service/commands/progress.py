"""How far a job is: a bar on a terminal, lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Self, TextIO

from service.bulk.inputs import Part

LINE_EVERY_S: Final = 5.0


class LineProgress(AbstractContextManager["LineProgress"]):
    """A line for the first part, the last, and every few seconds between. Thread-safe.

    Args:
        num_parts: All that the job has.
        num_done: Of them, those that were there before.
        stream: Where lines go.
        clock: In seconds.
    """

    def __init__(
        self,
        num_parts: int,
        num_done: int,
        stream: TextIO = sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_parts, self._num_done = num_parts, num_done
        self._num_rows = self._num_bad = 0
        self._stream, self._clock = stream, clock
        self._said_at = -LINE_EVERY_S
        self._lock = threading.Lock()

    def item(self) -> None:
        """As `Progress` has it."""

    def part(self, part: Part, num_rows: int, num_bad: int) -> None:
        """As `Progress` has it."""
        del part
        with self._lock:
            self._num_done += 1
            self._num_rows += num_rows
            self._num_bad += num_bad
            is_last = self._num_done == self._num_parts
            if is_last or self._clock() - self._said_at >= LINE_EVERY_S:
                self._said_at = self._clock()
                self._say()

    def _say(self) -> None:
        self._stream.write(
            f"part {self._num_done} of {self._num_parts}: "
            f"{self._num_rows} rows, {self._num_bad} bad\n"
        )
        self._stream.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to put away."""


class BarProgress(AbstractContextManager["BarProgress"]):
    """A bar, by rich. Thread-safe.

    Args:
        num_items: That are still to be read; None where nobody knows.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self, num_items: int | None) -> None:
        from rich import progress  # noqa: PLC0415 - an extra, and lines do as well

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
        )
        self._bar = progress.Progress(*columns)
        self._task = self._bar.add_task("images", total=num_items)

    def item(self) -> None:
        """As `Progress` has it."""
        self._bar.advance(self._task)

    def part(self, part: Part, num_rows: int, num_bad: int) -> None:
        """As `Progress` has it."""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


def new_progress(
    num_parts: int, num_done: int, num_items: int | None
) -> LineProgress | BarProgress:
    """A bar where there is a terminal and rich, else lines."""
    if sys.stderr.isatty():
        try:
            return BarProgress(num_items)
        except ImportError:
            pass
    return LineProgress(num_parts, num_done)
