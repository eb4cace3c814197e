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
from collections.abc import Mapping
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, Final, Literal, TextIO

from service.call import Call, current_call

MAX_LINES: Final = 10_000
# Less than a person notices. To wake a thread for each line costs its request 30 us.
GATHER_S: Final = 0.05
# gRPC logs this error when an answer finds its RPC ended. The class is not public.
SEND_ERROR: Final = "ExecuteBatchError"
# An encoder of our own: `json.dumps` makes a new one for each line if `default` is given.
to_json = json.JSONEncoder(default=str).encode
LogFormat = Literal["json", "text"]
# Seconds since the epoch, and the fields of an answered request.
Answer = tuple[float, Mapping[str, Any]]
# Level, logger and message of its line, which no log level hides.
ANSWERED: Final = ("INFO", "service.access", "answered")


class LogQueue(logging.Handler):
    """Formats a record where its call is known; another thread writes the line to a stream.

    That thread formats the line of an answer too, which takes longer than to count the answer.
    """

    def __init__(
        self, stream: TextIO, log_format: LogFormat, *, max_lines: int = MAX_LINES
    ) -> None:
        super().__init__()
        self.formatter: RecordFormatter = RecordFormatter(log_format)
        self.num_dropped = 0
        self._stream, self._max_lines = stream, max_lines
        # Not `queue.Queue`: its `put` may wait for a thread that reads.
        self._lines: SimpleQueue[str | Answer | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, or drop it."""
        try:
            line = self.format(record) + "\n"
        except Exception:  # such as a wrong number of arguments: never the request's fault
            line = ""
        self._put(line)

    def put_answer(self, fields: Mapping[str, Any]) -> None:
        """Queue the line of an answered request, or drop it; nobody changes `fields` any more."""
        self._put((time.time(), fields))

    def _put(self, line: "str | Answer") -> None:
        if line and self._lines.qsize() < self._max_lines:
            self._lines.put(line)
        else:
            self.num_dropped += 1

    def close(self, timeout_s: float = 0.0) -> None:
        """Write the queued lines and end; those that the stream does not take in time are lost."""
        self._lines.put(None)
        self._thread.join(timeout_s)
        super().close()

    def _write_lines(self) -> None:
        """Write each line with one call of the system, so that processes do not mix their lines."""
        while (line := self._lines.get()) is not None:
            if not isinstance(line, str):
                when_s, fields = line
                line = self.formatter.line(when_s, ANSWERED, fields) + "\n"
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):  # the reader has left; it may come back
                self.num_dropped += 1
            if self._lines.empty():
                time.sleep(GATHER_S)


class RecordFormatter(logging.Formatter):
    """Writes a record, the ids of its call and `extra={"fields": {...}}` as one line."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._as_json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line: a JSON object, or text followed by the fields."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        call = current_call.get(None)
        if call is not None:
            fields = call_ids(call) | fields
        if record.exc_info:
            fields = fields | {"exception": self.formatException(record.exc_info)}
        what = record.levelname, record.name, record.getMessage()
        return self.line(record.created, what, fields)

    def line(self, when_s: float, what: tuple[str, str, str], fields: Mapping[str, Any]) -> str:
        """One line of level, logger, message and fields; seconds are those since the epoch."""
        level, logger, message = what
        when = datetime.fromtimestamp(when_s, UTC).isoformat(timespec="milliseconds")
        if self._as_json:
            head = {"time": when, "level": level, "logger": logger, "message": message}
            return to_json({**head, **fields})
        tail = " ".join(f"{key}={value}" for key, value in fields.items())
        return f"{when} {level:<7} {message} {tail}".rstrip()


def call_ids(call: Call) -> dict[str, Any]:
    """The ids of a call, as fields."""
    ids = {"request_id": call.request_id}
    return ids | {"trace_id": call.trace.trace_id} if call.trace.trace_id else ids


def configure_logging(level: str) -> LogQueue:
    """Send all records of this process, also those of libraries, to standard error.

    Returns:
        The queue; close it at the end, or the last lines are lost.
    """
    log = LogQueue(sys.stderr, "text" if sys.stderr.isatty() else "json")
    logging.basicConfig(level=level, handlers=[log], force=True)
    logging.captureWarnings(True)
    # Python keeps the text of each warning for ever, and callers choose Pillow's.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    threading.excepthook = log_thread_end
    # Their information lines repeat what the server itself logs.
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # The answer reports a broken image or form to the caller; it is no error of the server.
    for name in ("PIL", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("grpc._cython.cygrpc").addFilter(is_not_send_error)
    return log


def is_not_send_error(record: logging.LogRecord) -> bool:
    """False for gRPC's error about an answer to a caller who left."""
    return not (record.exc_info and getattr(record.exc_info[0], "__name__", "") == SEND_ERROR)


def log_thread_end(event: threading.ExceptHookArgs) -> None:
    """Log an exception that ends a thread."""
    if event.exc_value is not None:
        error = (event.exc_type, event.exc_value, event.exc_traceback)
        name = event.thread.name if event.thread else "?"
        logging.getLogger(__name__).error("the thread %s ended", name, exc_info=error)
