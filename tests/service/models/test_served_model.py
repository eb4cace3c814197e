"""What a model's requests took is counted by how they ended, each by what it added itself."""

import pytest

from service.call import Call
from service.models.served_model import RequestCounts, Total


class Clock:
    """Seconds that pass when the test says so."""

    now = 10.0

    def __call__(self) -> float:
        return self.now


def test_success_and_failure_are_counted_apart() -> None:
    clock = Clock()
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
    assert (view.name, view.last_ms, view.num_items) == ("fake", 5000, 3)
    assert (view.success, view.fail) == (Total(1, 2_000_000_000), Total(1, 1_000_000_000))
    assert view.stages["post"] == Total(1, 250_000_000)
    assert view.stages["run"] == Total(1, 1_000_000_000)
    assert view.batches == {2: Total(1, 1_000_000_000)}
    assert view.num_batches == 1


def test_before_anything_was_asked_there_is_nothing() -> None:
    view = RequestCounts().snapshot("fake", {})
    assert (view.last_ms, view.num_items, view.num_batches, view.success.count) == (0, 0, 0, 0)
