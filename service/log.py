"""The structured log: one line a record, as JSON or text, with the request id of its call."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from service.call import current_call

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
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"time": time, "level": record.levelname, "logger": record.name}
        if self._as_json:
            return json.dumps(head | {"message": record.getMessage()} | fields, default=str)
        tail = " ".join(f"{key}={value}" for key, value in fields.items())
        return f"{time} {record.levelname:<7} {record.getMessage()} {tail}".rstrip()


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send all records of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RecordFormatter(log_format))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Their information lines say again, in another form, what the server itself logs.
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
