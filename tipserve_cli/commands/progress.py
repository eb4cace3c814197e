"""Shows the progress of a job: a bar on a terminal, lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from tipserve_cli.bulk.running import JobProgress

LINE_EVERY_S: Final = 5.0
PART: Final = ("part", "rows")


class ProgressLines:
    """Writes a line for the first part, the last one, and every few seconds. Not thread-safe.

    Args:
        num_parts: Parts of the job.
        num_done: Parts that an earlier run has written.
        stream: Receives the lines.
        clock: Returns seconds.
        nouns: What a part is, and what it has.
    """

    def __init__(
        self,
        num_parts: int,
        num_done: int,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        nouns: tuple[str, str] = PART,
    ) -> None:
        self._num_parts, self._num_done = num_parts, num_done
        self._part, self._rows = nouns
        self._num_rows = self._num_bad = 0
        self._stream, self._clock = stream, clock
        self._last_line_s = -LINE_EVERY_S

    def image_read(self) -> None:
        """Lines count parts only."""

    def part_written(self, num_rows: int, num_bad: int) -> None:
        """Count a part, and write a line if it is time."""
        self._num_done += 1
        self._num_rows += num_rows
        self._num_bad += num_bad
        now_s = self._clock()
        if self._num_done == self._num_parts or now_s - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now_s
            self._stream.write(
                f"{self._part} {self._num_done} of {self._num_parts}: "
                f"{self._num_rows} {self._rows}, {self._num_bad} skipped\n"
            )
            self._stream.flush()


class ProgressBar:
    """Advances a bar of rich with each image."""

    def __init__(self, bar: Any, num_images: int | None) -> None:
        self._bar = bar
        self._task = bar.add_task("images", total=num_images)

    def image_read(self) -> None:
        """Advance the bar."""
        self._bar.advance(self._task)

    def part_written(self, num_rows: int, num_bad: int) -> None:
        """The bar counts images only."""


@contextmanager
def shown_progress(
    num_parts: int, num_done: int, num_images: int | None, *, nouns: tuple[str, str] = PART
) -> Iterator[JobProgress]:
    """Show the progress of a job on standard error.

    Args:
        num_parts: Parts of the job.
        num_done: Parts that an earlier run has written.
        num_images: Images of the other parts; None if unknown.
        nouns: What a part is, and what it has.
    """
    if not sys.stderr.isatty():
        yield ProgressLines(num_parts, num_done, sys.stderr, nouns=nouns)
        return
    from rich import progress  # noqa: PLC0415 - slow to import, and lines do not need it

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns) as bar:
        yield ProgressBar(bar, num_images)
