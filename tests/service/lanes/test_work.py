"""The result of an item: cancelled, abandoned, or settled once."""

from collections.abc import Callable

import pytest

from service.errors import InternalError
from service.lanes.work import Completed, ItemFuture

DONE = Completed(outputs={}, queue_s=0.0, run_s=0.0)


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def future(events: list[str]) -> ItemFuture:
    """Its callbacks append to the events."""
    future = ItemFuture()
    future.on_left = lambda: events.append("left")
    future.when_done(lambda one: events.append(one.state))
    return future


def test_a_waiting_item_is_cancelled_and_never_runs(future: ItemFuture, events: list[str]) -> None:
    assert future.cancel()
    assert not future.start()
    future.settle(DONE)
    assert future.cancel(), "again"
    assert (future.state, events) == ("cancelled", ["cancelled", "left"])


def test_a_running_item_is_abandoned_once_and_still_gets_its_result(
    future: ItemFuture, events: list[str]
) -> None:
    assert future.start()
    assert not future.cancel()
    assert not future.cancel()
    assert (future.is_abandoned, future.state) == (True, "running")
    future.settle(DONE)
    future.settle(error=InternalError("late"))
    assert future.result() is DONE
    assert events == ["left", "done"]


@pytest.mark.parametrize("end", [lambda f: f.settle(error=InternalError("no")), ItemFuture.cancel])
def test_an_item_that_has_ended_holds_no_callback(
    future: ItemFuture, events: list[str], end: Callable[[ItemFuture], object]
) -> None:
    end(future)
    assert (future.on_left, future._on_done) == (None, None)
    future.when_done(lambda one: events.append(f"{one.state} already"))
    assert events[-1] == f"{future.state} already"
    assert future._on_done is None
