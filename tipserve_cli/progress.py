"""Shows the progress of a job on standard error: a line that changes, or lines in a log."""

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
    """Show the first unit, the last one, and one every few seconds; on a terminal every one.

    Args:
        unit: What is counted, such as `part`.
        total: How many there are.
        num_done: Those that an earlier run has written.
    """
    num_bad, next_line_s = 0, 0.0
    is_terminal = sys.stderr.isatty()

    def advance(num_skipped: int) -> None:
        nonlocal num_done, num_bad, next_line_s
        num_done += 1
        num_bad += num_skipped
        if is_terminal or num_done == total or time.monotonic() >= next_line_s:
            next_line_s = time.monotonic() + LINE_EVERY_S
            end = "\r" if is_terminal and num_done < total else "\n"
            text = f"{unit} {num_done} of {total}: {num_bad} skipped"
            print(text, end=end, file=sys.stderr, flush=True)

    yield advance
