"""Stops a run cleanly on SIGTERM and SIGINT, such as when a machine is preempted.

The training loop checks for a request between two steps, saves, and raises `Stopped`.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_Handler = Callable[[int, FrameType | None], object] | int | None


class Stopped(Exception):
    """A run was asked to stop, and its progress is saved.

    Attributes:
        step: Completed and saved steps.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"saved at step {step}; run the same command to resume")
        self.step = step


class StopRequest:
    """Inside the context, the first signal requests a stop and the second ends the process.

    Processes forked inside the context, such as those that load data, ignore the first signal,
    because a terminal's Ctrl-C reaches them too. Outside the main thread signals cannot be caught,
    and the context does nothing.
    """

    def __init__(self) -> None:
        self._is_requested = False
        self._pid = os.getpid()
        self._before: dict[signal.Signals, _Handler] = {}

    @property
    def is_requested(self) -> bool:
        """Whether this process has received a signal."""
        return self._is_requested

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._is_requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._is_requested = True
        if os.getpid() == self._pid:
            name = signal.Signals(number).name
            # Not print: a signal may interrupt print itself, which is not reentrant.
            line = f"\n{name}: finishing the step and saving; a second signal ends the process\n"
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
