"""Shows the progress of a job on standard error: a bar on a terminal, lines in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

LINE_EVERY_S: Final = 5.0


class Advance(Protocol):
    """Called when images are finished."""

    def __call__(self, num_skipped: int, num_done: int = 1) -> None:
        """Count some more, and how many of them were skipped."""


@contextmanager
def shown_progress(unit: str, total: int, num_done: int = 0) -> Iterator[Advance]:
    """Show a bar with rate and time left, or in a log the first unit, the last and one every 5 s.

    Args:
        unit: What is counted, such as `image`.
        total: How many there are.
        num_done: Those that an earlier run has written.
    """
    count = _Count(num_done)
    if sys.stderr.isatty():
        from rich import console, progress  # noqa: PLC0415 - slow, and lines need neither

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
            task = bar.add_task(f"{unit}s", total=total, completed=num_done, rate="")

            def draw(num_skipped: int, num_done: int = 1) -> None:
                count.add(num_skipped, num_done)
                bar.update(task, completed=count.num_done, rate=count.rate)

            yield draw
        return
    next_line_s = 0.0

    def write(num_skipped: int, num_done: int = 1) -> None:
        nonlocal next_line_s
        count.add(num_skipped, num_done)
        if count.num_done == total or time.monotonic() >= next_line_s:
            next_line_s = time.monotonic() + LINE_EVERY_S
            text = f"{unit} {count.num_done} of {total}: {count.num_skipped} skipped, {count.rate}"
            print(text, file=sys.stderr, flush=True)

    yield write


class _Count:
    """What is finished, and how fast."""

    def __init__(self, num_done: int) -> None:
        self.num_done, self.num_skipped = num_done, 0
        self._first, self._start_s = num_done, time.monotonic()

    def add(self, num_skipped: int, num_done: int) -> None:
        self.num_done += num_done
        self.num_skipped += num_skipped

    @property
    def rate(self) -> str:
        elapsed_s = max(time.monotonic() - self._start_s, 1e-3)
        return f"{(self.num_done - self._first) / elapsed_s:.1f}/s"
