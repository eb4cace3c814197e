"""Lines come out in order, and a reader who is stuck or gone stops nobody."""

import contextlib
import io
import logging
import os
import threading
from collections.abc import Iterator
from typing import TextIO

import pytest

from service.monitoring.log import LineWriter

LIMIT_S = 20.0


class HeldStream(io.StringIO):
    """A stream whose reader is stuck until `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def write(self, text: str) -> int:
        """Wait, then keep it."""
        self.entered.set()
        assert self.gate.wait(LIMIT_S)
        return super().write(text)


@pytest.fixture
def held() -> Iterator[HeldStream]:
    stream = HeldStream()
    yield stream
    stream.gate.set()


def test_lines_come_out_in_order_and_functions_are_called_for_theirs() -> None:
    stream = io.StringIO()
    lines = LineWriter(stream)
    for number in range(2500):
        lines.put(f"{number}\n" if number % 2 else f"{number}\n".__str__)
    assert lines.close(LIMIT_S)
    assert stream.getvalue().split() == [str(number) for number in range(2500)]
    assert lines.num_dropped == 0


def test_a_stuck_reader_costs_lines_and_no_time(
    held: HeldStream, caplog: pytest.LogCaptureFixture
) -> None:
    lines = LineWriter(held, max_lines=10)
    lines.put("first\n")
    assert held.entered.wait(LIMIT_S)
    for number in range(25):
        lines.put(f"{number}\n")  # would hang here if it waited for the reader
    assert lines.num_dropped == 15
    held.gate.set()
    assert lines.close(LIMIT_S)
    assert held.getvalue().split() == ["first", *map(str, range(10))]
    told = [r for r in caplog.records if r.getMessage() == "log lines were dropped"]
    assert sum(r.__dict__["fields"]["lines"] for r in told) in {0, 15}  # 0 where closing was first


def test_what_was_lost_is_told_once_the_reader_is_back(held: HeldStream) -> None:
    lines = LineWriter(held, max_lines=1)
    logged = threading.Event()

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert record.__dict__["fields"] == {"lines": 2}
            logged.set()

    handler = Notice()
    logging.getLogger("service.monitoring.log").addHandler(handler)
    try:
        lines.put("first\n")
        assert held.entered.wait(LIMIT_S)
        for number in range(3):
            lines.put(f"{number}\n")
        held.gate.set()
        assert logged.wait(LIMIT_S)
    finally:
        logging.getLogger("service.monitoring.log").removeHandler(handler)
    assert lines.close(LIMIT_S)


def test_closing_does_not_wait_for_ever(held: HeldStream) -> None:
    lines = LineWriter(held)
    lines.put("first\n")
    assert held.entered.wait(LIMIT_S)
    assert not lines.close(0.01)


def closed_pipe() -> TextIO:
    read_end, write_end = os.pipe()
    os.close(read_end)
    return os.fdopen(write_end, "w", buffering=1)


def closed_stream() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [closed_pipe, closed_stream])
def test_a_reader_who_is_gone_is_no_error(make: "type[TextIO]") -> None:
    stream = make()
    lines = LineWriter(stream)
    lines.put("first\n")
    assert lines.close(LIMIT_S)
    assert lines.num_dropped == 1
    with contextlib.suppress(BrokenPipeError):
        stream.close()
