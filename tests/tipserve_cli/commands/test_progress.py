"""Lines of progress in a log."""

import io

from tipserve_cli.commands.progress import ProgressLines


def test_lines_come_at_the_start_the_end_and_every_few_seconds() -> None:
    stream, now = io.StringIO(), 0.0
    progress = ProgressLines(5, 1, stream, lambda: now, nouns=("image", "instances"))
    for seconds in (0.0, 1.0, 6.0, 6.5):
        now = seconds
        progress.part_written(10, 1)
    assert stream.getvalue().splitlines() == [
        "image 2 of 5: 10 instances, 1 skipped",
        "image 4 of 5: 30 instances, 3 skipped",
        "image 5 of 5: 40 instances, 4 skipped",
    ]
