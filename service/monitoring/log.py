"""The log: one line per record, as JSON or text, written by a thread of its own.

The reader of the log may be slow or stuck. A request never waits for it: lines are queued, and
dropped and counted when the queue is full.
"""

import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any, Final, Literal, TextIO

import orjson

from service.call import Call, current_call
from service.tracing import Outcome

MAX_LINES: Final = 10_000
# Less than a person notices.
GATHER_S: Final = 0.05
LINES_PER_WRITE: Final = 1000
# Linux's PIPE_BUF: a pipe takes so much at once, so that lines of several processes do not mix.
MAX_WRITE_BYTES: Final = 4096
ACCESS_LOGGER: Final = "service.access"
# gRPC raises and logs this error when an answer finds its RPC ended. The class is not public.
SEND_ERROR: Final = "ExecuteBatchError"
# An encoder of our own: `json.dumps` makes a new one for each line if `default` is given.
to_json = json.JSONEncoder(default=str).encode
LogFormat = Literal["json", "text"]
Line = str | Callable[[], str]


class LogQueue:
    """Takes lines from a logging handler and writes them to a stream in a thread of its own."""

    def __init__(
        self, stream: TextIO, log_format: LogFormat, *, max_lines: int = MAX_LINES
    ) -> None:
        # Not `queue.Queue`: its `put` may wait, and so may the listener's stop once it is full.
        lines: SimpleQueue[Line] = SimpleQueue()
        self.log_format: Final = log_format
        self.handler = _Handler(lines, max_lines)
        self.handler.setFormatter(RecordFormatter(log_format))
        self._listener = _Listener(lines, stream)
        self._listener.start()

    @property
    def num_dropped(self) -> int:
        """Number of lines that were not written."""
        return self.handler.num_dropped + self._listener.num_dropped

    def put(self, line: Line) -> None:
        """Write a line, with its line end, soon; the log's thread calls a function for it."""
        self.handler.enqueue(line)

    def close(self, timeout_s: float) -> bool:
        """Write the queued lines and end; False if the stream did not take them in time."""
        # `stop` has no time limit of its own.
        closing = threading.Thread(target=self._listener.stop, name="log-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        return not closing.is_alive()


class _Handler(QueueHandler):
    """Formats a record in the thread that logs it, where its call is known, and queues the line."""

    queue: "SimpleQueue[Line]"

    def __init__(self, lines: "SimpleQueue[Line]", max_lines: int) -> None:
        super().__init__(lines)
        self.num_dropped = 0
        self._num_reported = 0
        self._max_lines = max_lines
        self._counting = threading.Lock()

    def prepare(self, record: logging.LogRecord) -> str:
        return self.format(record) + "\n"

    def enqueue(self, record: Any) -> None:
        with self._counting:
            if self.queue.qsize() >= self._max_lines:
                self.num_dropped += 1
                return
            if self.num_dropped > self._num_reported:
                fields = {"lines": self.num_dropped - self._num_reported}
                self._num_reported = self.num_dropped
                warning = {
                    "name": __name__,
                    "levelname": "WARNING",
                    "msg": "log lines were dropped",
                }
                self.queue.put(self.prepare(logging.makeLogRecord({**warning, "fields": fields})))
            self.queue.put(record)


class _Listener(QueueListener):
    """Writes queued lines many at a time.

    Waking a thread and writing for each line costs the request that logs it 30 us more.
    """

    def __init__(self, lines: "SimpleQueue[Line]", stream: TextIO) -> None:
        super().__init__(lines)
        self.num_dropped = 0
        self._is_empty = lines.empty
        self._stream = stream
        self._gathered: list[Line] = []

    def dequeue(self, block: bool) -> Any:
        if self._is_empty():
            self._write()
            time.sleep(GATHER_S)
        return super().dequeue(block)

    def handle(self, record: Any) -> None:
        self._gathered.append(record)
        if len(self._gathered) >= LINES_PER_WRITE:
            self._write()

    def stop(self) -> None:
        super().stop()
        self._write()

    def _write(self) -> None:
        lines, self._gathered = self._gathered, []
        if not lines:
            return
        try:
            for piece in _pieces(e if isinstance(e, str) else e() for e in lines):
                self._stream.write(piece)
                self._stream.flush()
        except (OSError, ValueError):  # the reader has left, or the stream was closed
            self.num_dropped += len(lines)


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Join lines to pieces that a pipe takes at once; a longer line is a piece of its own."""
    piece, num_bytes = "", 0
    for line in lines:
        size = len(line.encode(errors="replace"))
        if piece and num_bytes + size > MAX_WRITE_BYTES:
            yield piece
            piece, num_bytes = "", 0
        piece, num_bytes = piece + line, num_bytes + size
    yield piece


class RecordFormatter(logging.Formatter):
    """Writes a record, the ids of its call, and the fields of `extra={"fields": {...}}`."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._as_json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line: a JSON object, or text followed by the fields."""
        fields: dict[str, Any] = {}
        call = current_call.get(None)
        if call is not None:
            fields["request_id"] = call.request_id
            if call.trace.trace_id:
                fields["trace_id"] = call.trace.trace_id
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        when, level, message = _utc(record.created), record.levelname, record.getMessage()
        if self._as_json:
            head = {"time": when, "level": level, "logger": record.name, "message": message}
            return to_json({**head, **fields})
        return _as_text(when, level, message, fields)


def _as_text(when: str, level: str, message: str, fields: Mapping[str, Any]) -> str:
    tail = " ".join(f"{key}={value}" for key, value in fields.items())
    return f"{when} {level:<7} {message} {tail}".rstrip()


def _utc(when: float) -> str:
    return f"{_utc_second(int(when))}.{int(when % 1 * 1000):03d}+00:00"


@lru_cache(maxsize=2)
def _utc_second(when: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))


class AccessLog:
    """Logs one line for an evenly spread share of all answers, and for all faults of the server."""

    # Queued past `logging`, and made a line in the log's thread. Measured with `python -m
    # benchmarks.observability_cost` on 2026-11-27: 17 us of CPU time for a line, 66 us
    # as a record of a logger.

    def __init__(self, log: LogQueue, ratio: float = 1.0) -> None:
        self._log = log
        self._ratio = ratio
        self._owed = 0.0

    def write(self, call: Call, outcome: Outcome) -> None:
        """Log one answer, if it belongs to the share or is a fault of the server."""
        # Two event loops may add at once and lose one addition; the share allows for that.
        self._owed += self._ratio
        if self._owed < 1.0 and not outcome.is_fault:
            return
        self._owed = max(0.0, self._owed - 1.0)
        self._log.put(partial(_access_line, self._log.log_format, time.time(), call, outcome))


def _access_line(log_format: LogFormat, when: float, call: Call, outcome: Outcome) -> str:
    fields: dict[str, Any] = {"request_id": call.request_id}
    if call.trace.trace_id:
        fields["trace_id"] = call.trace.trace_id
    fields["method"] = outcome.method
    fields["code"] = outcome.code
    if outcome.error:
        fields["error"] = outcome.error
    fields["seconds"] = round(outcome.seconds, 6)
    # A copy: a request that was abandoned may still get a stage.
    for name, stage_s in call.stages.copy().items():
        fields[f"{name}_s"] = round(stage_s, 6)
    if log_format == "text":
        return _as_text(_utc(when), "INFO", "answered", fields) + "\n"
    head = {"time": _utc(when), "level": "INFO", "logger": ACCESS_LOGGER, "message": "answered"}
    return orjson.dumps({**head, **fields}).decode() + "\n"


def configure_logging(level: str, log_format: LogFormat | Literal["auto"]) -> LogQueue:
    """Send all records of this process, also those of libraries, to standard error.

    Returns:
        The queue; close it at the end, or the last lines are lost.
    """
    if log_format == "auto":
        log_format = "text" if sys.stderr.isatty() else "json"
    log = LogQueue(sys.stderr, log_format)
    logging.basicConfig(level=level, handlers=[log.handler], force=True)
    logging.captureWarnings(True)
    ignore_image_warnings()
    threading.excepthook = log_thread_end
    # Their information lines repeat what the server itself logs.
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # The answer reports a broken image or form to the caller; it is no error of the server.
    for name in ("PIL", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("grpc._cython.cygrpc").addFilter(is_not_send_error)
    return log


def ignore_image_warnings() -> None:
    """Ignore Pillow's warnings: Python keeps each text for ever, and callers choose the texts."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def is_not_send_error(record: logging.LogRecord) -> bool:
    """False for gRPC's error about an answer to a caller who left."""
    return not (record.exc_info and getattr(record.exc_info[0], "__name__", "") == SEND_ERROR)


def log_thread_end(event: threading.ExceptHookArgs) -> None:
    """Log an exception that ends a thread."""
    if event.exc_value is not None:
        error = (event.exc_type, event.exc_value, event.exc_traceback)
        name = event.thread.name if event.thread else "?"
        logging.getLogger(__name__).error("the thread %s ended", name, exc_info=error)
