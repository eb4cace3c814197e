"""Jobs in the pool: one error of several, and none that runs on."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from service.waiting import Pool, run_in_pool


@pytest.fixture
def threads() -> Iterator[Pool]:
    made = Pool(2)
    yield made
    made.shutdown()


async def test_the_first_job_that_failed_gives_the_error_and_none_is_lost(threads: Pool) -> None:
    lost: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    second_failed = threading.Event()

    def first() -> None:
        assert second_failed.wait(20)
        raise ValueError("first")

    def second() -> None:
        second_failed.set()
        raise ValueError("second")

    with pytest.raises(ValueError, match="first"):
        await run_in_pool(threads, [first, second])
    gc.collect()
    await asyncio.sleep(0)
    assert not lost


async def test_a_cancelled_caller_waits_for_the_job_that_runs(threads: Pool) -> None:
    begun, goes_on, is_over = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert goes_on.wait(20)
        is_over.set()

    running = asyncio.ensure_future(run_in_pool(threads, [work]))
    assert await asyncio.to_thread(begun.wait, 20)
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert is_over.is_set()
