"""Lines are complete and in order, and a stuck or closed stream blocks no request."""

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from service.call import Call, current_call
from service.monitoring.log import LogFormat, LogQueue
from service.monitoring.metrics import Metrics
from service.monitoring.telemetry import Telemetry
from service.tracing import NO_TRACER, begin_request

LIMIT_S = 20.0
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Stream(io.StringIO):
    """Counts the lines of each write, and writes nothing while `gate` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.num_lines: list[int] = []

    def write(self, text: str) -> int:
        """Wait, then keep it."""
        self.entered.set()
        assert self.gate.wait(LIMIT_S)
        self.num_lines.append(text.count("\n"))
        return super().write(text)


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream()
    yield made
    made.gate.set()


def record(message: object) -> logging.LogRecord:
    return logging.LogRecord("service.x", logging.INFO, __file__, 1, "%s", (message,), None)


def messages(stream: Stream) -> list[str]:
    return [json.loads(line)["message"] for line in stream.getvalue().splitlines()]


def test_lines_are_written_in_order_each_by_one_write(stream: Stream) -> None:
    log = LogQueue(stream, "json")
    for number in range(2500):
        log.handle(record(number))
    log.close(LIMIT_S)
    assert messages(stream) == [str(number) for number in range(2500)]
    assert stream.num_lines == [1] * 2500, "so that processes do not mix their lines"
    assert log.num_dropped == 0


def test_lines_for_a_stuck_stream_are_dropped_and_counted(stream: Stream) -> None:
    stream.gate.clear()
    log = LogQueue(stream, "json", max_lines=10)
    log.handle(record("first"))
    assert stream.entered.wait(LIMIT_S)
    for number in range(25):
        log.handle(record(number))  # would hang here if it waited for the reader
    assert log.num_dropped == 15
    log.close(0.01)
    stream.gate.set()
    log.close(LIMIT_S)
    assert messages(stream) == ["first", *map(str, range(10))]


@contextmanager
def logged(log_format: LogFormat = "json") -> Iterator[list[str]]:
    """Lines that all loggers write meanwhile."""
    stream, lines = io.StringIO(), list[str]()
    log = LogQueue(stream, log_format)
    logging.getLogger().addHandler(log)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(log)
        log.close(LIMIT_S)
        lines += stream.getvalue().splitlines()


def fail() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("service.x").exception("hello %s", "you", extra={"fields": {"code": 200}})


def test_a_line_has_message_fields_ids_and_the_exception() -> None:
    token = current_call.set(Call(request_id="r1", deadline=1.0))
    try:
        with logged() as lines:
            fail()
        with logged("text") as texts:
            fail()
    finally:
        current_call.reset(token)
    parsed = json.loads(lines[0])
    assert (parsed["message"], parsed["code"], parsed["request_id"]) == ("hello you", 200, "r1")
    assert "ValueError: broken" in parsed["exception"]
    assert (parsed["level"], parsed["logger"]) == ("ERROR", "service.x")
    start = r"[-0-9]+T[:0-9]+\.\d{3}\+00:00 ERROR   hello you request_id=r1 code=200 exception="
    assert re.match(start, texts[0])


def answered(
    call: Call, *codes: int | str, metrics: Metrics, ratio: float = 1.0
) -> list[dict[str, Any]]:
    """The log lines of answers with these codes."""
    stream = io.StringIO()
    log = LogQueue(stream, "json")
    telemetry = Telemetry(metrics, log=log, log_ratio=ratio)
    for code in codes:
        telemetry.end(call, "GET /x", code, is_fault=code == 500)
    log.close(LIMIT_S)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_answer_is_logged_with_ids_method_code_and_stages(metrics: Metrics) -> None:
    carrier = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-00"}
    trace = begin_request(NO_TRACER, "http", "GET", carrier, started=0.0)
    call = Call(request_id="r1", deadline=1.0, trace=trace, host="::1", key_name="acme")
    call.clock, call.started = lambda: 0.25, 0.0
    call.model, call.num_items, call.num_bytes = "tiny", 6, 5000
    call.sizes_hw = [(n, 2 * n) for n in range(1, 7)]
    call.stages = {"admit": 0.001, "run": 0.125}
    (line,) = answered(call, 200, metrics=metrics)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "service.access",
        "message": "answered",
        "request_id": "r1",
        "trace_id": TRACE_ID,
        "method": "GET /x",
        "code": 200,
        "address": "::1",
        "caller": "acme",
        "model": "tiny",
        "sizes": "12x6,10x5,8x4,6x3",
        "items": 6,
        "bytes": 5000,
        "seconds": 0.25,
        "admit_s": 0.001,
        "run_s": 0.125,
    }
    untraced = Call(request_id="r2", deadline=1.0, error="queue_full")
    (line,) = answered(untraced, "RESOURCE_EXHAUSTED", metrics=metrics)
    assert (line["code"], line["error"]) == ("RESOURCE_EXHAUSTED", "queue_full")
    assert "trace_id" not in line


@pytest.mark.parametrize(("ratio", "step"), [(1.0, 1), (0.25, 4), (0.125, 8), (0.0, 1000)])
def test_a_share_of_answers_is_logged_evenly_and_every_fault(
    metrics: Metrics, ratio: float, step: int
) -> None:
    call = Call(request_id="r1", deadline=1.0)
    codes = [line["code"] for line in answered(call, *range(100), metrics=metrics, ratio=ratio)]
    assert codes == list(range(step - 1, 100, step))
    lines = answered(call, 500, 200, metrics=metrics, ratio=ratio)
    assert 500 in [line["code"] for line in lines]


ONE_LINE = """
import logging
from service.monitoring.log import configure_logging
log = configure_logging("INFO")
logging.getLogger("service.x").info("hello")
log.close(20)
"""


def test_lines_are_json_where_no_terminal_is() -> None:
    command = [sys.executable, "-c", ONE_LINE]
    piped = subprocess.run(command, check=True, stderr=subprocess.PIPE, timeout=60)
    assert json.loads(piped.stderr)["message"] == "hello"
    ours, terminal = pty.openpty()
    try:
        subprocess.run(command, check=True, stderr=terminal, timeout=60)
        shown = os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(terminal)
    assert "hello" in shown
    assert not shown.startswith("{")
