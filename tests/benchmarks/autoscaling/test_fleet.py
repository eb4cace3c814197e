"""Pods that start late, drain, and are chosen; and callers whose rate changes."""

import random

import pytest
import simpy

from benchmarks.autoscaling.fleet import Balancer, Fleet, Phase, PodStart, callers
from benchmarks.autoscaling.replica import IMAGE, Request, plain_spec

SLOW_START = PodStart(schedule_s=5.0, load_s=5.0, probe_s=0.0)


def make_fleet(
    *, balancer: Balancer = "random", service_s: float = 1.0
) -> tuple[simpy.Environment, Fleet]:
    env = simpy.Environment()
    spec = plain_spec(1, service_s)
    return env, Fleet(env, spec, SLOW_START, rng=random.Random(1), balancer=balancer)


def ask(env: simpy.Environment, fleet: Fleet, count: int) -> None:
    for _ in range(count):
        fleet.ask(Request(env.now, {IMAGE: (1, 1)}))


def test_a_new_pod_takes_nothing_before_it_is_ready() -> None:
    env, fleet = make_fleet(balancer="least")
    fleet.begin(1)
    fleet.scale_to(2)
    assert (fleet.replicas, len(fleet.ready)) == (2, 1)
    env.run(until=9.9)
    ask(env, fleet, 2)
    assert len(fleet.ready) == 1
    env.run(until=10.1)
    ask(env, fleet, 2)
    env.run()
    # The first two wait at the old pod, one behind the other; the others at the new one.
    latencies = sorted(round(o.latency_s or 0, 1) for o in fleet.outcomes)
    assert latencies == [1.0, 1.0, 2.0, 2.0]


def test_a_pod_that_stops_answers_what_it_has_and_gets_no_more() -> None:
    env, fleet = make_fleet(balancer="least")
    fleet.begin(2)
    ask(env, fleet, 6)
    fleet.scale_to(1)
    assert [pod.number for pod in fleet.ready] == [0]
    ask(env, fleet, 1)
    env.run()
    assert len(fleet.outcomes) == 7
    assert all(o.latency_s is not None for o in fleet.outcomes)
    assert max(o.latency_s or 0 for o in fleet.outcomes) == 4.0
    assert len(fleet.pods) == 1


def test_pods_that_are_not_ready_are_stopped_first() -> None:
    env, fleet = make_fleet()
    fleet.begin(2)
    fleet.scale_to(4)
    fleet.scale_to(2)
    assert [pod.number for pod in fleet.ready] == [0, 1]
    env.run(until=20)
    assert [pod.number for pod in fleet.pods] == [0, 1]


def test_with_no_pod_ready_everybody_is_refused() -> None:
    env, fleet = make_fleet()
    fleet.scale_to(1)
    ask(env, fleet, 3)
    assert [o.latency_s for o in fleet.outcomes] == [None] * 3


def test_the_rate_steps() -> None:
    env, fleet = make_fleet(service_s=0.001)
    fleet.begin(1)
    phases = [Phase(500, 2.0), Phase(600, 0.0), Phase(1_100, 10.0)]
    env.process(callers(env, fleet, phases, items=lambda: {IMAGE: (1, 1)}, rng=random.Random(2)))
    env.run()
    arrived = [outcome.arrived for outcome in fleet.outcomes]
    counts = [sum(a <= t < b for t in arrived) for a, b in ((0, 500), (500, 600), (600, 1_100))]
    assert counts == [pytest.approx(1_000, rel=0.1), 0, pytest.approx(5_000, rel=0.05)]
