"""Shows the progress of a job on standard error: a bar on a terminal, lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

LINE_EVERY_S: Final = 5.0
# Called after each part or image, with the number of images that were skipped.
Advance = Callable[[int], None]


@contextmanager
def shown_progress(unit: str, total: int, num_done: int = 0) -> Iterator[Advance]:
    """Show a bar with the time left, or in a log the first unit, the last one and one every 5 s.

    Args:
        unit: What is counted, such as `part`.
        total: How many there are.
        num_done: Those that an earlier run has written.
    """
    if sys.stderr.isatty():
        from rich import console, progress  # noqa: PLC0415 - slow, and lines need neither

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
            task = bar.add_task(f"{unit}s", total=total, completed=num_done)
            yield lambda num_skipped: bar.advance(task)
        return
    num_bad, next_line_s = 0, 0.0

    def advance(num_skipped: int) -> None:
        nonlocal num_done, num_bad, next_line_s
        num_done += 1
        num_bad += num_skipped
        if num_done == total or time.monotonic() >= next_line_s:
            next_line_s = time.monotonic() + LINE_EVERY_S
            print(f"{unit} {num_done} of {total}: {num_bad} skipped", file=sys.stderr, flush=True)

    yield advance
