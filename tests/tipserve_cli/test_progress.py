"""Lines of progress in a log."""

import io

from tipserve_cli.progress import ProgressLines


def test_lines_come_at_the_start_the_end_and_every_few_seconds() -> None:
    stream, now = io.StringIO(), 0.0
    progress = ProgressLines("part", 5, 1, stream=stream, clock=lambda: now)
    for seconds in (0.0, 1.0, 6.0, 6.5):
        now = seconds
        progress.advance(1)
    assert stream.getvalue().splitlines() == [
        "part 2 of 5: 1 skipped", "part 4 of 5: 3 skipped", "part 5 of 5: 4 skipped"
    ]  # fmt: skip
