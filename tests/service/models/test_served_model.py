"""Statistics of a model's requests."""

import pytest

from service.call import Call
from service.models.served_model import RequestCounts, Total
from tests.service.conftest import Clock


def test_successes_and_failures_are_counted_with_the_time_that_each_added(clock: Clock) -> None:
    clock.now = 10.0
    counts = RequestCounts(now=lambda: 5.0)
    call = Call(request_id="r", deadline=99.0, clock=clock)
    call.add("post", 0.5)
    with counts.timing(call, 3):
        clock.now += 2
        call.add("post", 0.25)
        call.add("run", 1.0)
    failing = counts.timing(call, 1)
    clock.now += 1
    with pytest.raises(ValueError, match="broken"), failing:
        raise ValueError("broken")
    view = counts.snapshot("fake", {2: (1, 1.0)})
    assert (view.last_ms, view.num_items, view.num_batches) == (5000, 3, 1)
    assert (view.success, view.fail) == (Total(1, 2_000_000_000), Total(1, 1_000_000_000))
    assert view.stages["post"] == Total(1, 250_000_000)
    assert view.stages["run"] == Total(1, 1_000_000_000)
    assert view.batches == {2: Total(1, 1_000_000_000)}
