"""A thread pool that takes the jobs of different flows in turn."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from service.call import current_call

P = ParamSpec("P")
T = TypeVar("T")
Job = tuple["Future[Any]", Callable[[], Any]]


class FairPool(ThreadPoolExecutor):
    """Runs the jobs of one flow in order, and those of different flows in turn.

    A job belongs to the flow of the current call, or of the job that submits it. With one order for
    all, a caller waited 8 s behind 128 others who sent one image after the other.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        super().__init__(num_threads, name)
        # The first flow is the next to be served; none is empty.
        self._jobs: dict[str, deque[Job]] = {}
        self._changing = threading.Lock()
        self._own = threading.local()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Start a job as soon as its flow has a turn and a thread is free.

        Raises:
            RuntimeError: The pool is shut down.
        """
        future: Future[T] = Future()
        with self._changing:
            super().submit(self._run_next)  # first, since it may refuse
            jobs = self._jobs.setdefault(self._flow(), deque())
            jobs.append((future, partial(fn, *args, **kwargs)))
        return future

    def _flow(self) -> str:
        flow: str | None = getattr(self._own, "flow", None)
        if flow is None:
            call = current_call.get(None)
            flow = "" if call is None else call.flow
        return flow

    def _run_next(self) -> None:
        with self._changing:
            flow = next(iter(self._jobs))
            jobs = self._jobs.pop(flow)
            future, work = jobs.popleft()
            if jobs:  # to the end
                self._jobs[flow] = jobs
        if not future.set_running_or_notify_cancel():
            return
        self._own.flow = flow
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        finally:
            # The frames of an error lead here: without the cycle its image is freed now.
            del future, work
