"""A job shows how far it is: a bar on a terminal, few lines in a log, and nothing on its output."""

import io
import sys

import pytest

from tipserve_cli.progress import shown_progress


class Terminal(io.StringIO):
    """Standard error of a shell."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "shown"),
    [
        (Terminal(), ["images", "5/5", "/s", "0:00:00"]),
        (io.StringIO(), ["image 2 of 5: 1 skipped, ", "image 5 of 5: 1 skipped, ", "/s\n"]),
    ],
    ids=["terminal", "log"],
)
def test_progress_is_shown_on_standard_error(
    stream: io.StringIO,
    shown: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with shown_progress("image", 5, 1) as advance:
        advance(1)
        advance(0, 3)
    assert all(text in stream.getvalue() for text in shown)
    assert not capsys.readouterr().out
