"""The log: one line per record, as JSON or text, written by a thread of its own.

The reader of the log may be slow or stuck. A request never waits for it: records are queued, and
dropped and counted when the queue is full.
"""

import json
import logging
import sys
import threading
import time
import warnings
from copy import copy
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any, Final, Literal, TextIO

from service.call import Call, current_call
from service.tracing import Outcome

MAX_LINES: Final = 10_000
# Less than a person notices. To wake a thread for each line costs its request 30 us.
GATHER_S: Final = 0.05
# gRPC raises and logs this error when an answer finds its RPC ended. The class is not public.
SEND_ERROR: Final = "ExecuteBatchError"
# An encoder of our own: `json.dumps` makes a new one for each line if `default` is given.
to_json = json.JSONEncoder(default=str).encode
LogFormat = Literal["json", "text"]
# Its level is its own: the line of a fault is written at every level of the log.
access_logger = logging.getLogger("service.access")
access_logger.setLevel(logging.INFO)


class LogQueue:
    """Takes records from a logging handler and writes them to a stream in a thread of its own."""

    def __init__(
        self, stream: TextIO, log_format: LogFormat, *, max_lines: int = MAX_LINES
    ) -> None:
        # Not `queue.Queue`: its `put` may wait, and so may the listener's stop once it is full.
        self.handler = _Handler(SimpleQueue(), max_lines)
        self._listener = _Listener(self.handler.queue, stream, log_format)
        self._listener.start()

    @property
    def num_dropped(self) -> int:
        """Number of lines that were not written."""
        return self.handler.num_dropped + self._listener.num_dropped

    def close(self, timeout_s: float) -> bool:
        """Write the queued lines and end; False if the stream did not take them in time."""
        # `stop` has no time limit of its own.
        closing = threading.Thread(target=self._listener.stop, name="log-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        return not closing.is_alive()


class _Handler(QueueHandler):
    """Completes a record in the thread that logs it, where its call is known, and queues it."""

    queue: "SimpleQueue[logging.LogRecord]"

    def __init__(self, records: "SimpleQueue[logging.LogRecord]", max_lines: int) -> None:
        super().__init__(records)
        self.num_dropped = 0
        self._max_lines = max_lines

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record = copy(record)  # other handlers have it too
        call = current_call.get(None)
        fields = getattr(record, "fields", {})
        if call is not None:
            fields = call_ids(call) | fields
        if record.exc_info:
            fields = fields | {"exception": _plain.formatException(record.exc_info)}
        record.fields = fields
        # Arguments may change, and an exception would keep its frames alive.
        record.msg, record.args = record.getMessage(), None
        record.exc_info = record.exc_text = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() >= self._max_lines:
            self.num_dropped += 1
            return
        self.queue.put(record)


class _Listener(QueueListener):
    """Writes records in its thread, many after each wake-up, each with one call of the system."""

    queue: "SimpleQueue[logging.LogRecord]"

    def __init__(
        self, records: "SimpleQueue[logging.LogRecord]", stream: TextIO, log_format: LogFormat
    ) -> None:
        super().__init__(records)
        self.num_dropped = 0
        self._stream = stream
        self._format = RecordFormatter(log_format).format

    def dequeue(self, block: bool) -> logging.LogRecord:
        if self.queue.empty():
            time.sleep(GATHER_S)
        return self.queue.get(block)

    def handle(self, record: logging.LogRecord) -> None:
        # Not a `StreamHandler`: its lock would be held while a stuck stream takes nothing, and
        # `logging` waits for it when the process ends.
        try:
            self._stream.write(self._format(record) + "\n")
            self._stream.flush()
        except Exception:  # the reader has left, or a field has no text; the next line is written
            self.num_dropped += 1


_plain: Final = logging.Formatter()


def call_ids(call: Call) -> dict[str, Any]:
    """The ids of a call, as fields."""
    ids = {"request_id": call.request_id}
    return ids | {"trace_id": call.trace.trace_id} if call.trace.trace_id else ids


class RecordFormatter(logging.Formatter):
    """Writes a record and the fields of `extra={"fields": {...}}` as one line."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime
        self._as_json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line: a JSON object, or text followed by the fields."""
        when = f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}+00:00"
        level, message, fields = (
            record.levelname,
            record.getMessage(),
            getattr(record, "fields", {}),
        )
        if self._as_json:
            head = {"time": when, "level": level, "logger": record.name, "message": message}
            return to_json(head | fields)
        tail = " ".join(f"{key}={value}" for key, value in fields.items())
        return f"{when} {level:<7} {message} {tail}".rstrip()


class AccessLog:
    """Logs one line for an evenly spread share of all answers, and for all faults of the server."""

    def __init__(self, ratio: float = 1.0) -> None:
        self._ratio = ratio
        self._owed = 0.0

    def write(self, call: Call, outcome: Outcome) -> None:
        """Log one answer, if it belongs to the share or is a fault of the server."""
        # Two event loops may add at once and lose one addition; the share allows for that.
        self._owed += self._ratio
        if self._owed < 1.0 and not outcome.is_fault:
            return
        self._owed = max(0.0, self._owed - 1.0)
        fields = call_ids(call) | {"method": outcome.method, "code": outcome.code}
        if outcome.error:
            fields["error"] = outcome.error
        fields |= call.facts()
        fields["seconds"] = round(outcome.seconds, 6)
        # A copy: a request that was abandoned may still get a stage.
        for name, stage_s in call.stages.copy().items():
            fields[f"{name}_s"] = round(stage_s, 6)
        access_logger.info("answered", extra={"fields": fields})


def configure_logging(level: str) -> LogQueue:
    """Send all records of this process, also those of libraries, to standard error.

    Returns:
        The queue; close it at the end, or the last lines are lost.
    """
    log = LogQueue(sys.stderr, "text" if sys.stderr.isatty() else "json")
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
