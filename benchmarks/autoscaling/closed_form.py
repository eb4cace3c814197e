"""Closed forms against the simulation at fixed replicas, by utilisation: are both right?"""

import random
from collections.abc import Sequence
from typing import Final

import simpy

from benchmarks.autoscaling.fleet import Fleet, Phase, PodStart, callers
from benchmarks.autoscaling.queueing import Queue
from benchmarks.autoscaling.replica import IMAGE, ReplicaSpec, plain_spec
from benchmarks.autoscaling.report import seconds
from benchmarks.autoscaling.scenario import quantile

UTILISATIONS: Final = (0.3, 0.5, 0.7, 0.8, 0.9)
REQUESTS: Final = 40_000
# Of what is simulated, while the queue fills.
WARM_UP_SHARE: Final = 0.05


def simulated_waits(
    spec: ReplicaSpec, rate: float, num_requests: int, seed: int
) -> tuple[list[float], float]:
    """Waits of the requests of one replica, and the share of time that its lanes took."""
    env, rng = simpy.Environment(), random.Random(seed)
    fleet = Fleet(env, spec, PodStart(), rng=rng)
    fleet.begin(1)
    end_s = num_requests / rate
    phases = [Phase(end_s, rate)]
    seen = random.Random(seed + 1)
    env.process(callers(env, fleet, phases, items=lambda: {IMAGE: (1, 1)}, rng=seen))
    env.run(until=end_s)
    (pod,) = fleet.pods
    busy_s = pod.replica.counters.busy_s if pod.replica else 0.0
    settled = [o.queue_s for o in fleet.outcomes if o.arrived > WARM_UP_SHARE * end_s]
    return [wait for wait in settled if wait is not None], busy_s / (spec.lanes * end_s)


def closed_form_table(service_s: float, lanes: Sequence[int] = (1, 2, 8)) -> list[str]:
    """Mean and p99 of the wait in services, both ways, and their ratio."""
    head = "| lanes | utilisation | mean wait | simulated | ratio | p99 wait | simulated | ratio |"
    rows = [head, "| --- " * 8 + "|"]
    for count in lanes:
        for utilisation in UTILISATIONS:
            rate = utilisation * count / service_s
            # Batches of one shape take equally long, so the squared variation is next to none.
            queue = Queue(servers=count, rate=rate, service_s=service_s, service_cv2=0.0)
            waits, _ = simulated_waits(plain_spec(count, service_s), rate, REQUESTS, 1)
            mean_s, p99_s = sum(waits) / len(waits), quantile(waits, 0.99)
            rows.append(
                f"| {count} | {utilisation:.0%} | {seconds(queue.mean_wait_s)} | {seconds(mean_s)} "
                f"| {ratio(mean_s, queue.mean_wait_s)} | {seconds(queue.wait_s(0.99))} "
                f"| {seconds(p99_s)} | {ratio(p99_s, queue.wait_s(0.99))} |"
            )
    return rows


def ratio(simulated_s: float, computed_s: float) -> str:
    """Simulated over computed, where there is something to compare."""
    return f"{simulated_s / computed_s:.2f}" if computed_s > 0 else "-"
