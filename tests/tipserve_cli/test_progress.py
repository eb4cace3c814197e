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
    [(Terminal(), ["images", "3/3", "0:00:00"]), (io.StringIO(), ["image 3 of 3: 1 skipped\n"])],
    ids=["terminal", "log"],
)
def test_progress_is_shown_on_standard_error(
    stream: io.StringIO,
    shown: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with shown_progress("image", 3, 1) as advance:
        advance(1)
        advance(0)
    assert all(text in stream.getvalue() for text in shown)
    assert not capsys.readouterr().out
