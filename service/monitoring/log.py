"""Log lines: format, access log, and a writer that never blocks a request."""

import json
import logging
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache, partial
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final, Literal, TextIO

from service.call import Call, current_call
from service.tracing import Ending

# Log lines on their way out, by a thread of their own.
#
# Whoever reads the log may be slow or stuck; a request is never made to wait for it. Lines are
# gathered and written many at a time, and beyond a bound they are dropped and counted.

MAX_LINES: Final = 10_000
# How long lines are gathered before they are written together: less than a person notices.
GATHER_S: Final = 0.05
LINES_PER_WRITE: Final = 1000
Line = str | Callable[[], str]
logger = logging.getLogger(__name__)


class LineWriter:
    """Writes lines to a stream in the order in which they were put. Thread-safe."""

    def __init__(self, stream: TextIO, *, max_lines: int = MAX_LINES) -> None:
        self._stream = stream
        self._max_lines = max_lines
        self._waiting: deque[Line] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._count_lock = threading.Lock()
        self._num_dropped = 0
        self._num_told = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def num_dropped(self) -> int:
        """Lines that were not written."""
        return self._num_dropped

    def put(self, line: Line) -> None:
        """Write a line, with its line end, soon; a function is called for it in the thread."""
        if len(self._waiting) >= self._max_lines:
            self._drop(1)
            return
        self._waiting.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout_s: float) -> bool:
        """Write what waits and end; False where the stream did not take it in time."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(GATHER_S)
            self._wake.clear()
            self._write_waiting()
            if self._num_dropped > self._num_told:
                num_lines, self._num_told = self._num_dropped - self._num_told, self._num_dropped
                logger.warning("log lines were dropped", extra={"fields": {"lines": num_lines}})
        self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            num_lines = min(len(self._waiting), LINES_PER_WRITE)
            lines = [self._waiting.popleft() for _ in range(num_lines)]
            try:
                self._stream.write("".join(e if isinstance(e, str) else e() for e in lines))
                self._stream.flush()
            except (OSError, ValueError):
                # The reader is gone, or the stream was closed: nobody is left to be told.
                self._drop(num_lines)
                self._num_told = self._num_dropped

    def _drop(self, num_lines: int) -> None:
        with self._count_lock:
            self._num_dropped += num_lines


# The structured log: one line a record, as JSON or text, with the ids of its call.

# What gRPC raises and logs as an error where an answer finds its RPC ended.
SEND_ERROR = "ExecuteBatchError"
LogFormat = Literal["json", "text"]


class RecordFormatter(logging.Formatter):
    """Writes a record and the fields given by `extra={"fields": {...}}`."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._as_json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON, or as text with the fields behind it."""
        fields: dict[str, Any] = dict(getattr(record, "fields", {}))
        call = current_call.get(None)
        if call is not None:
            fields.setdefault("request_id", call.request_id)
            if call.trace.trace_id:
                fields.setdefault("trace_id", call.trace.trace_id)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"time": time, "level": record.levelname, "logger": record.name}
        if self._as_json:
            return json.dumps(head | {"message": record.getMessage()} | fields, default=str)
        tail = " ".join(f"{key}={value}" for key, value in fields.items())
        return f"{time} {record.levelname:<7} {record.getMessage()} {tail}".rstrip()


class LineHandler(logging.Handler):
    """Formats where the record is made, for the call is known there, and hands the line over."""

    def __init__(self, lines: LineWriter) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Hand over one record."""
        try:
            self._lines.put(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


def configure_logging(level: str, log_format: LogFormat) -> LineWriter:
    """Send all records of this process, also uvicorn's and gRPC's, to standard error.

    Returns:
        The way there; close it at the end, or the last lines are lost.
    """
    lines = LineWriter(sys.stderr)
    handler = LineHandler(lines)
    handler.setFormatter(RecordFormatter(log_format))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    forget_warnings_about_files()
    threading.excepthook = log_thread_end
    # Their information lines say again, in another form, what the server itself logs.
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # What is wrong with a caller's image or form stands in the answer; it is no error of ours.
    for name in ("PIL", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("grpc._cython.cygrpc").addFilter(had_a_caller)
    return lines


def forget_warnings_about_files() -> None:
    """Let Pillow warn nobody: Python would keep every new text for ever, and callers make them."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def had_a_caller(record: logging.LogRecord) -> bool:
    """False for gRPC's complaint that it could not send to a caller who has left meanwhile."""
    return not (record.exc_info and getattr(record.exc_info[0], "__name__", "") == SEND_ERROR)


def log_thread_end(event: threading.ExceptHookArgs) -> None:
    """What ends a thread is a record like any other, instead of many lines of another form."""
    if event.exc_value is not None:
        error = (event.exc_type, event.exc_value, event.exc_traceback)
        name = event.thread.name if event.thread else "?"
        logging.getLogger(__name__).error("the thread %s ended", name, exc_info=error)


# One log line for each answered request, made for high rates.
#
# A request hands over a few values and goes on; the log's own thread makes the line of them,
# without the machinery of `logging`, which alone costs a request several times as much
# (`benchmarks/observability_cost.py`).

NAME: Final = "service.access"


class AccessLog:
    """Writes the lines of a share of all requests, evenly spread."""

    def __init__(
        self,
        lines: LineWriter,
        log_format: LogFormat,
        *,
        ratio: float = 1.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._lines = lines
        self._format = as_json if log_format == "json" else as_text
        self._ratio = ratio
        self._owed = 0.0
        self._wall_clock = wall_clock

    def answered(self, call: Call, ending: Ending) -> None:
        """Log one answer, if it is one of the share or the fault was ours."""
        # Two loops may add at once and lose a part of one; the share bears that.
        self._owed += self._ratio
        if self._owed < 1.0 and not ending.is_fault:
            return
        self._owed = max(0.0, self._owed - 1.0)
        self._lines.put(partial(self._format, self._wall_clock(), call, ending))


def as_json(when: float, call: Call, ending: Ending) -> str:
    """The line as JSON; `when` in seconds since 1970."""
    code = ending.code if isinstance(ending.code, int) else quoted(ending.code)
    trace = f',"trace_id":"{call.trace.trace_id}"' if call.trace.trace_id else ""
    error = f',"error":{quoted(ending.error)}' if ending.error else ""
    stages = "".join(f',"{name}_s":{stage_s:.6f}' for name, stage_s in call.stages.items())
    return (
        f'{{"time":"{_utc(when)}","level":"INFO","logger":"{NAME}","message":"answered"'
        f',"request_id":{quoted(call.request_id)}{trace},"method":{quoted(ending.method)}'
        f',"code":{code}{error},"seconds":{ending.seconds:.6f}{stages}}}\n'
    )


def as_text(when: float, call: Call, ending: Ending) -> str:
    """The line for people."""
    trace = f" trace_id={call.trace.trace_id}" if call.trace.trace_id else ""
    error = f" error={ending.error}" if ending.error else ""
    stages = "".join(f" {name}_s={stage_s:.6f}" for name, stage_s in call.stages.items())
    return (
        f"{_utc(when)} INFO    answered request_id={call.request_id}{trace} method={ending.method} "
        f"code={ending.code}{error} seconds={ending.seconds:.6f}{stages}\n"
    )


def _utc(when: float) -> str:
    return f"{_utc_second(int(when))}.{int(when % 1 * 1000):03d}+00:00"


@lru_cache(maxsize=2)
def _utc_second(when: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))
