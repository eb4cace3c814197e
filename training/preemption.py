"""Stops a run cleanly on SIGTERM and SIGINT, such as when a machine is preempted.

The training loop checks for a request between two steps, saves, and raises `Stopped`.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run was asked to stop, and its progress is saved.

    Attributes:
        step: Completed and saved steps.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"saved at step {step}; run the same command to resume")
        self.step = step


class StopRequest:
    """Whether this process has received a signal."""

    is_requested = False


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Inside the context, the first signal requests a stop and the second ends the process.

    Processes forked inside the context, such as those that load data, ignore the first signal,
    because a terminal's Ctrl-C reaches them too. Outside the main thread signals cannot be caught,
    and the context does nothing.
    """
    request, pid = StopRequest(), os.getpid()

    def receive(number: int, _frame: FrameType | None) -> None:
        if request.is_requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        request.is_requested = True
        if os.getpid() == pid:
            name = signal.Signals(number).name
            # Not print: a signal may interrupt print itself, which is not reentrant.
            line = f"\n{name}: finishing the step and saving; a second signal ends the process\n"
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, receive) for number in STOP_SIGNALS if is_main}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
