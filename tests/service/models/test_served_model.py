"""Statistics of a model's requests, and the report of its lanes."""

from contextlib import suppress
from typing import Any

from service.call import Call
from service.models.served_model import RequestCounts, Total
from service.monitoring.metrics import Metrics
from tests.service.conftest import WAIT_S, Clock


def test_successes_and_failures_are_counted_with_the_time_that_each_added(clock: Clock) -> None:
    clock.now = 10.0
    counts = RequestCounts(now=lambda: 5.0)
    call = Call(request_id="r", deadline=99.0, clock=clock)
    call.record("post", 0.0, 0.5)
    with counts.count(call, 3):
        clock.now += 2
        call.record("post", 0.0, 0.25)
        call.record("run", 0.0, 1.0)
    with suppress(ValueError), counts.count(call, 1):
        clock.now += 1
        raise ValueError("broken")
    view = counts.snapshot("fake", {2: (1, 1.0)})
    assert (view.last_ms, view.num_items) == (5000, 3)
    assert view.totals["success"] == Total(1, 2_000_000_000)
    assert view.totals["fail"] == view.totals["run"] == Total(1, 1_000_000_000)
    assert view.totals["post"] == Total(1, 250_000_000)
    assert view.batches == {2: Total(1, 1_000_000_000)}


async def test_a_scrape_reads_batches_and_admitted_patches(
    load_fake: Any, make_settings: Any, metrics: Metrics
) -> None:
    served = load_fake(make_settings(), metrics)
    for num_items, seconds in ((4, 0.5), (1, 0.25), (4, 1.5)):
        served._batcher.counts.observe(num_items, seconds)
    call = Call(request_id="r", deadline=float("inf"))
    served.budget.hold(3, call, is_new=True)
    found = served.measures()
    served.budget.free(3, call)
    assert found["lanes"] == {"ready": 1, "failing": 0, "hung": 0, "dead": 0}
    assert [found[f"model_batch{name}"] for name in ("es", "_items", "_seconds")] == [3, 9, 2.25]
    assert found["model_admitted_patches"] == 3
    assert served.measures()["model_admitted_patches"] == 0
    served.close(WAIT_S)
