"""The structured log: one line a record, as JSON or text, with the ids of its call."""

import json
import logging
import sys
import threading
import warnings
from datetime import UTC, datetime
from typing import Any, Literal

from service.call import current_call
from service.monitoring.log_lines import LineWriter

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
