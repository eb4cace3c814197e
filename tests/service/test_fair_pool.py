"""Jobs of flows in turn, their results and errors, and the end of the pool."""

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import copy_context
from functools import partial

import pytest

from service.call import Call, current_call
from service.fair_pool import FairPool

LIMIT_S = 30.0


@pytest.fixture
def pool() -> Iterator[FairPool]:
    """One thread."""
    with FairPool(1, "test") as pool:
        yield pool


@pytest.fixture
def held(pool: FairPool) -> Iterator[threading.Event]:
    """The thread works until the event is set."""
    event = threading.Event()
    pool.submit(event.wait, LIMIT_S)
    yield event
    event.set()


def submit(
    flow: str, pool: FairPool, works: Iterable[Callable[[], None]], *, start: bool = False
) -> None:
    """Submit jobs, or start them, within a call of this flow."""

    def run() -> None:
        current_call.set(Call(request_id="x", deadline=1.0, flow=flow))
        for work in works:
            (pool.start if start else pool.submit)(work)

    copy_context().run(run)


def wait(pool: FairPool, ran: Sequence[str], num_jobs: int) -> None:
    """Wait until so many jobs have run."""
    until = time.monotonic() + LIMIT_S
    while len(ran) < num_jobs:
        assert time.monotonic() < until
        pool.submit(int).result(LIMIT_S)


@pytest.mark.skipif(os.sched_getscheduler(0) != os.SCHED_OTHER, reason="kept by threads")
def test_the_threads_take_no_core_from_those_that_wake_them(pool: FairPool) -> None:
    assert pool.submit(os.sched_getscheduler, 0).result(LIMIT_S) == os.SCHED_BATCH


def test_flows_take_turns(pool: FairPool, held: threading.Event) -> None:
    ran: list[str] = []
    for flow, names in (("flood", "abcd"), ("one", "1"), ("two", "xy"), ("one", "2")):
        submit(flow, pool, [partial(ran.append, name) for name in names])
    held.set()
    wait(pool, ran, 8)
    assert ran == ["a", "1", "x", "b", "2", "y", "c", "d"]


def test_started_work_takes_the_turns_of_its_flow(pool: FairPool, held: threading.Event) -> None:
    ran: list[str] = []
    submit("flood", pool, [partial(ran.append, name) for name in "ab"])
    submit("one", pool, [partial(ran.append, "1")], start=True)
    held.set()
    wait(pool, ran, 3)
    assert ran == ["a", "1", "b"]


def test_started_work_runs_although_the_others_are_dropped(
    pool: FairPool, held: threading.Event
) -> None:
    ran: list[str] = []
    dropped = pool.submit(ran.append, "submitted")
    pool.start(partial(ran.append, "started"))
    pool.shutdown(wait=False, cancel_futures=True)
    held.set()
    pool.shutdown()
    assert dropped.cancelled()
    assert ran == ["started"]
    with pytest.raises(RuntimeError):
        pool.start(partial(ran.append, "late"))


def test_what_a_job_submits_is_of_its_flow(pool: FairPool, held: threading.Event) -> None:
    ran: list[str] = []

    def submit_more() -> None:
        for name in "ab":
            pool.submit(ran.append, name)

    submit("flood", pool, [submit_more, partial(ran.append, "later")])
    submit("other", pool, [partial(ran.append, name) for name in "xyz"])
    held.set()
    wait(pool, ran, 6)
    assert ran == ["x", "later", "y", "a", "z", "b"]


def test_a_cancelled_job_does_not_run(pool: FairPool, held: threading.Event) -> None:
    ran: list[int] = []
    first, second = (pool.submit(ran.append, n) for n in (1, 2))
    assert first.cancel()
    held.set()
    second.result(LIMIT_S)
    assert ran == [2]


def test_an_error_is_the_futures_and_leaves_no_cycle(pool: FairPool) -> None:
    class Image:
        pass

    kept: list[weakref.ref[Image]] = []

    def fail() -> None:
        image = Image()
        kept.append(weakref.ref(image))
        raise ValueError("broken")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="broken"):
            pool.submit(fail).result(LIMIT_S)
        pool.submit(int).result(LIMIT_S)  # the thread has left the first job
        assert kept[0]() is None
    finally:
        gc.enable()


def test_a_pool_that_is_shut_down_runs_what_it_has_and_refuses_more(
    pool: FairPool, held: threading.Event
) -> None:
    last = pool.submit(int)
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        pool.submit(int)
    held.set()
    assert last.result(LIMIT_S) == 0
