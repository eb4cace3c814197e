"""Lines for whoever reads a log."""

import io

from service.bulk.inputs import Part
from service.commands.progress import LineProgress

PART = Part(number=0, kind="files", paths=())


def test_lines_come_at_the_start_the_end_and_now_and_then() -> None:
    stream, now = io.StringIO(), 0.0
    progress = LineProgress(5, 1, stream, lambda: now)
    for seconds in (0.0, 1.0, 6.0, 6.5):
        now = seconds
        progress.part(PART, 10, 1)
    assert stream.getvalue().splitlines() == [
        "part 2 of 5: 10 rows, 1 bad",
        "part 4 of 5: 30 rows, 3 bad",
        "part 5 of 5: 40 rows, 4 bad",
    ]
