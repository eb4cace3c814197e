"""Names, the default, and a model that ends only when its last user has left."""

import math
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest

from service.call import Call
from service.errors import ModelNotFound
from service.lanes.latency_model import LatencyCurve
from service.lanes.work import Bucket
from service.models.registry import ModelRegistry
from service.models.served_model import ServedModel
from service.monitoring.metrics import Metrics

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

LIMIT_S = 20.0


@pytest.fixture
def make(
    serve_fake: Any, make_settings: Any, metrics: Metrics, runtime: "FakeRuntime"
) -> Iterator[Callable[[str], ServedModel]]:
    made: list[ServedModel] = []

    def make_named(name: str) -> ServedModel:
        made.append(serve_fake(make_settings(), metrics, runtime, name))
        return made[-1]

    yield make_named
    for served in made:
        served.close(LIMIT_S)


@pytest.fixture
def registry(metrics: Metrics) -> ModelRegistry:
    return ModelRegistry(metrics)


def names(registry: ModelRegistry) -> list[str]:
    return [served.manifest.name for served in registry.models()]


def test_the_first_is_the_default_and_stays_it(registry: ModelRegistry, make: Any) -> None:
    first = make("z")
    for served in (first, make("b"), make("a")):
        registry.put(served)
    assert names(registry) == ["z", "a", "b"]
    assert registry.find(None) is registry.find("") is registry.find("z") is first
    registry.remove("z")
    assert names(registry) == ["a", "b"]
    with pytest.raises(ModelNotFound, match="default model is not served; name another: a, b"):
        registry.find(None)
    again = make("z")
    registry.put(again)
    assert registry.find(None) is again


def test_an_unknown_name_is_told_with_those_there_are(registry: ModelRegistry, make: Any) -> None:
    with pytest.raises(ModelNotFound, match="none now"):
        registry.find(None)
    registry.put(make("a"))
    with pytest.raises(ModelNotFound, match="'b' is served; there is: a"), registry.lease("b"):
        pytest.fail("it was lent")
    with pytest.raises(ModelNotFound):
        registry.remove("b")


def test_a_swap_leaves_users_with_the_old_and_gives_others_the_new(
    registry: ModelRegistry, make: Any
) -> None:
    old: ServedModel = make("a")
    new: ServedModel = make("a")
    registry.put(old)
    with registry.lease("a") as mine:
        assert registry.put(new) is old
        with registry.lease(None) as others:
            assert (mine, others) == (old, new)
        assert not registry.wait_unused(old, 0)
        waiting = threading.Thread(target=registry.wait_unused, args=(old, LIMIT_S))
        waiting.start()
    waiting.join(LIMIT_S)
    assert not waiting.is_alive()
    assert registry.wait_unused(old, 0)


def named(line: str) -> str:
    return line.split('name="')[1].split('"', maxsplit=1)[0]


def test_metrics_tell_of_what_is_served_and_of_nothing_else(
    registry: ModelRegistry, make: Any, metrics: Metrics
) -> None:
    def told() -> list[str]:
        lines = generate_latest(metrics.registry).decode().splitlines()
        return [line for line in lines if line.startswith("tipserve_model_info")]

    assert told() == []
    registry.put(make("a"))
    registry.put(make("a"))
    registry.put(make("b"))
    assert [named(line) for line in told()] == ["a", "b"]
    registry.remove("a")
    assert [named(line) for line in told()] == ["b"]


async def test_the_metrics_show_the_lanes_of_served_models(
    registry: ModelRegistry, make: Any, metrics: Metrics
) -> None:
    served = make("a")
    served._batcher.latency.set_measured(
        {Bucket("image", (28, 28)): LatencyCurve(0.25, 0.5)}, lambda _: 4
    )
    sample = metrics.registry.get_sample_value
    ready = {"model": "a", "state": "ready"}
    cost = {"model": "a", "bucket": "image 28x28"}
    assert sample("tipserve_lanes", ready) is None
    registry.put(served)
    assert sample("tipserve_lanes", ready) == 1
    assert sample("tipserve_lanes", {"model": "a", "state": "dead"}) == 0
    assert sample("tipserve_batch_cost_intercept_seconds", cost) == 0.25
    assert sample("tipserve_batch_cost_slope_seconds", cost) == 0.5
    served._batcher.counts.observe(4, 0.5)
    served._batcher.counts.observe(1, 0.25)
    of = {"model": "a"}
    counts = [
        sample(f"tipserve_model_batch{name}_total", of) for name in ("es", "_items", "_seconds")
    ]
    assert counts == [2, 5, 0.75]
    call = Call(request_id="r", deadline=math.inf)
    ticket = await served.admission.admit(3, call)
    assert sample("tipserve_model_admitted_patches", of) == 3
    ticket.release()
    assert sample("tipserve_model_admitted_patches", of) == 0
    assert sample("tipserve_model_max_admitted_patches", of) == served.admission.max_cost
    assert sample("tipserve_model_queue_depth", of) == 0
    registry.remove("a")
    assert sample("tipserve_batch_cost_slope_seconds", cost) is None
