"""A thread pool that takes the jobs of different flows in turn."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from service.call import current_call
from service.machine import work_in_background
from service.turns import FlowTurns

P = ParamSpec("P")
T = TypeVar("T")
Job = tuple["Future[Any] | None", Callable[[], Any]]


class FairPool(Executor):
    """Runs the jobs of one flow in order, and those of different flows in turn.

    A job belongs to the flow of the current call, or of the job that submits it. With one order for
    all, a caller waited 8 s behind 128 others who sent one image after the other.

    Not a `ThreadPoolExecutor`, which makes a future and an item of its own for each job, and takes
    three locks. Every request submits a job: this took 6 % of the CPU time of a small one.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._jobs: FlowTurns[Job] = FlowTurns()
        # True for each job that waits, and False for each thread that shall end.
        self._turns: SimpleQueue[bool] = SimpleQueue()
        self._changing = threading.Lock()
        self._own = threading.local()
        self._has_begun = self._is_shut_down = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}_{index}", daemon=True)
            for index in range(num_threads)
        ]

    @property
    def num_threads(self) -> int:
        """Most jobs that run at once."""
        return len(self._threads)

    @property
    def num_waiting(self) -> int:
        """Jobs that no thread has begun."""
        return self._turns.qsize()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Start a job as soon as its flow has a turn and a thread is free.

        Raises:
            RuntimeError: The pool is shut down.
        """
        future: Future[T] = Future()
        self._add(future, partial(fn, *args, **kwargs) if args or kwargs else fn)
        return future

    def start(self, work: Callable[[], None]) -> None:
        """`submit` for work that hands its result or error over itself, and raises nothing.

        It makes no future: to make, run and resolve one takes 20 calls and five locks.

        Raises:
            RuntimeError: The pool is shut down.
        """
        self._add(None, work)

    def _add(self, future: "Future[Any] | None", work: Callable[[], Any]) -> None:
        flow = self._flow()
        with self._changing:
            if self._is_shut_down:
                raise RuntimeError("the pool is shut down")
            if not self._has_begun:
                self._has_begun = True
                for thread in self._threads:
                    thread.start()
            self._jobs.add(flow, (future, work))
            self._turns.put(True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further jobs, and end the threads after those that wait.

        `cancel_futures` drops those of `submit`; those of `start` all run.
        """
        with self._changing:
            if not self._is_shut_down:
                self._is_shut_down = True
                for _ in self._threads:
                    self._turns.put(False)
            waiting = [future for future, _ in self._jobs]
            has_begun = self._has_begun
        for future in waiting if cancel_futures else ():
            if future is not None:
                future.cancel()
        for thread in self._threads if wait and has_begun else ():
            thread.join()

    def _flow(self) -> str:
        flow: str | None = getattr(self._own, "flow", None)
        if flow is None:
            call = current_call.get(None)
            flow = "" if call is None else call.flow
        return flow

    def _work(self) -> None:
        work_in_background()
        while self._turns.get():
            self._run_next()

    def _run_next(self) -> None:
        with self._changing:
            flow, (future, work) = self._jobs.pop()
        self._own.flow = flow
        if future is None:
            work()
            return
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        finally:
            # The frames of an error lead here: without the cycle its image is freed now.
            del future, work
