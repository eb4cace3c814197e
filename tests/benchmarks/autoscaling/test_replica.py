"""The simulated replica against closed forms, queues' laws, and the real batcher's rules."""

import random
from collections.abc import Generator
from typing import Any

import pytest
import simpy

from benchmarks.autoscaling.closed_form import simulated_waits
from benchmarks.autoscaling.fleet import Fleet, Phase, PodStart, callers
from benchmarks.autoscaling.queueing import Queue
from benchmarks.autoscaling.replica import (
    IMAGE,
    TEXT,
    Replica,
    ReplicaSpec,
    Request,
    plain_spec,
)
from service.lanes.latency_model import CostCurve
from service.lanes.work import BatchLimits

Steps = Generator[simpy.Event, Any, None]


def confidence(values: list[float], groups: int = 20) -> tuple[float, float]:
    """Mean and half of its 99 % interval, by means of groups, for neighbours are alike."""
    size = len(values) // groups
    means = [sum(values[i * size : (i + 1) * size]) / size for i in range(groups)]
    mean = sum(means) / groups
    variance = sum((value - mean) ** 2 for value in means) / (groups - 1)
    return mean, 2.861 * (variance / groups) ** 0.5  # Student's t with 19 degrees of freedom


@pytest.mark.parametrize(("lanes", "utilisation"), [(1, 0.5), (2, 0.7), (4, 0.85)])
def test_exponential_lanes_wait_as_erlang_says(lanes: int, utilisation: float) -> None:
    service_s = 0.2
    rate = utilisation * lanes / service_s
    spec = plain_spec(lanes, service_s, service_cv=1.0)  # a gamma of this variation is exponential
    waits, busy = simulated_waits(spec, rate, 24_000, seed=5)
    mean, half = confidence(waits)
    queue = Queue(servers=lanes, rate=rate, service_s=service_s)
    assert abs(mean - queue.mean_wait_s) < half + 0.02 * queue.mean_wait_s
    waited = sum(wait > 1e-9 for wait in waits) / len(waits)
    assert waited == pytest.approx(queue.wait_probability, abs=0.03)
    assert busy == pytest.approx(utilisation, rel=0.03)


def test_constant_service_waits_half_as_long() -> None:
    rate, service_s = 4.0, 0.2
    waits, _ = simulated_waits(plain_spec(1, service_s), rate, 24_000, seed=7)
    mean, half = confidence(waits)
    expected = Queue(servers=1, rate=rate, service_s=service_s, service_cv2=0.0).mean_wait_s
    assert abs(mean - expected) < half + 0.02 * expected


def test_littles_law() -> None:
    env, rng = simpy.Environment(), random.Random(3)
    fleet = Fleet(env, plain_spec(2, 0.3, service_cv=0.5), PodStart(), rng=rng)
    fleet.begin(3)
    end_s, rate = 1_500.0, 14.0
    inside: list[int] = []

    def look() -> Steps:
        while True:
            yield env.timeout(rng.expovariate(2.0))
            inside.append(sum(p.replica.counters.inflight for p in fleet.pods if p.replica))

    env.process(look())
    env.process(callers(env, fleet, [Phase(end_s, rate)], items=lambda: {IMAGE: (1, 1)}, rng=rng))
    env.run(until=end_s)
    latencies = [o.latency_s for o in fleet.outcomes if o.latency_s is not None]
    mean_inside = sum(inside) / len(inside)
    assert mean_inside == pytest.approx(sum(latencies) / end_s, rel=0.05)


def one_replica(spec: ReplicaSpec) -> tuple[simpy.Environment, Replica, list[Request]]:
    env, answered = simpy.Environment(), list[Request]()
    return env, Replica(env, spec, random.Random(0), answered.append), answered


def spec(*, lanes: int, max_items: int = 4, max_cost: int = 100, room: int = 1000) -> ReplicaSpec:
    limits = BatchLimits(max_items=max_items, max_cost=max_cost)
    costs = {IMAGE: CostCurve(1.0, 1.0), TEXT: CostCurve(0.0, 0.5)}
    return ReplicaSpec(
        lanes=lanes, costs=costs, limits={IMAGE: limits, TEXT: limits}, max_queue_cost=room
    )


def ask(replica: Replica, env: simpy.Environment, **items: tuple[int, int]) -> Request:
    request = Request(env.now, items)
    assert replica.offer(request)
    return request


def test_no_lane_is_idle_while_anything_waits() -> None:
    env, replica, answered = one_replica(spec(lanes=2))
    env.run(until=1)
    ask(replica, env, image=(4, 10))
    env.run()
    # Free lanes share: two each, and a batch of two takes 1 + 2 seconds.
    assert env.now == 1 + 3.0
    assert replica.counters.busy_s == 6.0
    assert len(answered) == 1


def test_a_batch_keeps_its_limits() -> None:
    env, replica, _ = one_replica(spec(lanes=1, max_items=4, max_cost=25))
    ask(replica, env, image=(4, 10))
    env.run()
    assert env.now == 2 * (1 + 2), "two batches of two, for three would cost too much"


def test_who_came_first_goes_first_whatever_it_asks() -> None:
    env, replica, answered = one_replica(spec(lanes=1))
    ask(replica, env, image=(1, 10))
    env.run(until=0.5)
    text = ask(replica, env, text=(2, 8))
    late = ask(replica, env, image=(1, 10))
    env.run()
    assert answered[1:] == [text, late]
    assert (text.queue_s, late.queue_s) == (1.5, 2.5)


def test_a_request_waits_for_the_last_of_its_items() -> None:
    env, replica, _ = one_replica(spec(lanes=1))
    ask(replica, env, image=(1, 10), text=(1, 8))
    env.run(until=2.2)
    assert replica.counters.answered == 0
    env.run()
    assert replica.counters.answered == 1
    assert replica.counters.queue_sum_s == 2.0


def test_what_does_not_fit_is_refused_as_a_whole_and_room_comes_back() -> None:
    env, replica, _ = one_replica(spec(lanes=1, room=30))
    ask(replica, env, image=(2, 10))
    assert not replica.offer(Request(env.now, {IMAGE: (2, 10)}))
    assert replica.counters.refused == 1
    env.run()
    ask(replica, env, image=(3, 10))
    told = replica.scrape()
    assert (told.inflight, told.answered, told.oldest_s) == (1, 1, 0.0)
