"""TensorRT's messages in Python's log, and its last errors for the exceptions that we raise.

TensorRT returns None or False where something failed and tells the reason to its logger alone. It
keeps the first logger of a process for good, so there is one.
"""

import logging
import threading
from collections import deque
from typing import Any

LOGGER = logging.getLogger("tensorrt")
MAX_ERRORS = 8


class LibraryLog:
    """Messages of one TensorRT module.

    Attributes:
        logger: For the library's constructors.
    """

    def __init__(self, trt: Any) -> None:
        """Make the library's logger, which must derive from its own class."""
        levels = {
            trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
            trt.ILogger.Severity.ERROR: logging.ERROR,
            trt.ILogger.Severity.WARNING: logging.WARNING,
            trt.ILogger.Severity.INFO: logging.DEBUG,
        }
        errors: deque[str] = deque(maxlen=MAX_ERRORS)

        class Forward(trt.ILogger):  # type: ignore[misc]
            """Called by the library, from any of its threads."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                """Pass on; thousands of verbose lines a graph are left out."""
                level = levels.get(severity)
                if level is None:
                    return
                LOGGER.log(level, "%s", message.strip())
                if level == logging.ERROR:
                    errors.append(message.strip())

        self._errors = errors
        self.logger = Forward()

    def take_errors(self) -> str:
        """The errors since the last call, oldest first, as part of a sentence.

        Another lane's errors may be among them: TensorRT does not say whose they are.
        """
        told = []
        while self._errors:
            told.append(self._errors.popleft())
        return "; ".join(told) or "TensorRT gave no reason"


_LOCK = threading.Lock()
_LOGS: dict[int, LibraryLog] = {}


def library_log(trt: Any) -> LibraryLog:
    """The log of a module, which lives as long as the process."""
    with _LOCK:
        if id(trt) not in _LOGS:
            _LOGS[id(trt)] = LibraryLog(trt)
        return _LOGS[id(trt)]
