"""Shows the progress of a job: a bar on a terminal, lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

LINE_EVERY_S: Final = 5.0
# Called after each part or image, with the number of images that were skipped.
Advance = Callable[[int], None]


class ProgressLines:
    """Writes a line for the first unit, the last one, and every few seconds. Not thread-safe.

    Args:
        unit: What is counted, such as `part`.
        total: How many there are.
        num_done: Those that an earlier run has written.
        stream: Receives the lines.
        clock: Returns seconds.
    """

    def __init__(
        self,
        unit: str,
        total: int,
        num_done: int,
        *,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._unit, self._total, self._num_done = unit, total, num_done
        self._stream, self._clock = stream, clock
        self._num_bad = 0
        self._last_line_s = -LINE_EVERY_S

    def advance(self, num_bad: int) -> None:
        """Count a unit, and write a line if it is time."""
        self._num_done += 1
        self._num_bad += num_bad
        now_s = self._clock()
        if self._num_done == self._total or now_s - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now_s
            line = f"{self._unit} {self._num_done} of {self._total}: {self._num_bad} skipped"
            print(line, file=self._stream, flush=True)


@contextmanager
def shown_progress(unit: str, total: int, num_done: int = 0) -> Iterator[Advance]:
    """Show the progress of a job on standard error; gives the function that counts a unit."""
    if not sys.stderr.isatty():
        yield ProgressLines(unit, total, num_done, stream=sys.stderr).advance
        return
    from rich import progress  # noqa: PLC0415 - slow to import, and lines do not need it

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns) as bar:
        task = bar.add_task(f"{unit}s", total=total, completed=num_done)
        yield lambda num_bad: bar.advance(task)
