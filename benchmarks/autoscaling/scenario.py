"""One traffic step against one autoscaler: everything put together, run, and told in numbers."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import simpy

from benchmarks.autoscaling.autoscaler import Controller, ScalerSettings
from benchmarks.autoscaling.fleet import Balancer, Fleet, Outcome, Phase, PodStart, callers
from benchmarks.autoscaling.prometheus import Prometheus
from benchmarks.autoscaling.replica import IMAGE, TEXT, Process, ReplicaSpec
from benchmarks.autoscaling.signals import Query, understand

BIN_S: Final = 10.0
# metrics-server looks at CPU so often, and averages over as long.
CPU_WINDOW_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What callers ask for.

    Attributes:
        phases: Requests a second; the second begins the step.
        image_patches: Of a request's one image.
        new_text_share: Share of requests with texts that the cache does not know.
        texts: How many of them such a request has.
        text_tokens: What each costs.
    """

    phases: tuple[Phase, ...]
    image_patches: int
    new_text_share: float = 0.0
    texts: int = 0
    text_tokens: int = 8

    def items(self, rng: random.Random) -> Callable[[], Mapping[str, tuple[int, int]]]:
        """Draws what the next request asks for."""
        plain = {IMAGE: (1, self.image_patches)}
        new = {**plain, TEXT: (self.texts, self.text_tokens)}
        return lambda: new if self.texts and rng.random() < self.new_text_share else plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What surrounds an autoscaler."""

    spec: ReplicaSpec
    start: PodStart
    traffic: Traffic
    scrape_s: float = 30.0
    cpus_requested: float = 1.0
    balancer: Balancer = "random"


@dataclass(frozen=True, slots=True)
class Bin:
    """What happened in some seconds; latencies are of those who came then."""

    start_s: float
    offered: int
    refused: int
    p99_s: float
    ready: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Run:
    """One simulated run."""

    bins: list[Bin]
    outcomes: list[Outcome]
    values: list[tuple[float, list[float]]]


def simulate(setting: Setting, scaler: ScalerSettings | None, replicas: int, seed: int) -> Run:
    """Run the traffic to its end.

    Args:
        setting: Around the autoscaler.
        scaler: What scales; None leaves the number as it is.
        replicas: That are ready at the start.
        seed: Of all chance.
    """
    env, rng = simpy.Environment(), random.Random(seed)
    fleet = Fleet(env, setting.spec, setting.start, rng=rng, balancer=setting.balancer)
    fleet.begin(replicas)
    prometheus = Prometheus(env, fleet, setting.scrape_s, random.Random(seed + 1))
    traffic = setting.traffic
    draw = traffic.items(random.Random(seed + 2))
    env.process(callers(env, fleet, traffic.phases, items=draw, rng=random.Random(seed + 3)))
    counts: list[tuple[int, int]] = []
    env.process(_watch(env, fleet, counts))
    values: list[tuple[float, list[float]]] = []
    if scaler is not None:
        readers = [_reader(target.query, setting, fleet, prometheus) for target in scaler.targets]
        env.process(_scale(env, fleet, scaler, readers=readers, values=values))
    end_s = traffic.phases[-1].until_s
    env.run(until=end_s + 60)  # those who are inside are answered
    return Run(_bins(fleet.outcomes, counts, end_s), fleet.outcomes, values)


def _watch(env: simpy.Environment, fleet: Fleet, counts: list[tuple[int, int]]) -> Process:
    while True:
        counts.append((len(fleet.ready), fleet.replicas))
        yield env.timeout(BIN_S)


def _scale(
    env: simpy.Environment,
    fleet: Fleet,
    scaler: ScalerSettings,
    *,
    readers: Sequence[Callable[[], float]],
    values: list[tuple[float, list[float]]],
) -> Process:
    controller = Controller(scaler)
    yield env.timeout(scaler.sync_s / 2)
    while True:
        read = [reader() for reader in readers]
        values.append((env.now, read))
        count = controller.decide(env.now, fleet.replicas, len(fleet.ready), read)
        if count != fleet.replicas:
            fleet.scale_to(count)
        yield env.timeout(scaler.sync_s)


def _reader(
    query: str, setting: Setting, fleet: Fleet, prometheus: Prometheus
) -> Callable[[], float]:
    """Reads one metric."""
    if query == "cpu":
        usage = CpuUsage(setting, fleet)
        return usage.read
    known: Query = understand(query, setting.spec.lanes)
    return lambda: known.value(prometheus)


class CpuUsage:
    """CPU time of all ready pods since the last look, over what they request; as metrics-server."""

    def __init__(self, setting: Setting, fleet: Fleet) -> None:
        self._setting, self._fleet = setting, fleet
        self._before: dict[int, float] = {}

    def read(self) -> float:
        """Mean over the pods that were there at the last look too."""
        now = {p.number: p.replica.counters.busy_s for p in self._fleet.ready if p.replica}
        shares = [
            (busy_s - self._before[number]) / CPU_WINDOW_S / self._setting.cpus_requested
            for number, busy_s in now.items()
            if number in self._before
        ]
        self._before = now
        return sum(shares) / len(shares) if shares else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """Of these values; not a number where there are none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _bins(
    outcomes: Sequence[Outcome], counts: Sequence[tuple[int, int]], end_s: float
) -> list[Bin]:
    grouped: list[list[Outcome]] = [[] for _ in range(math.ceil(end_s / BIN_S))]
    for outcome in outcomes:
        grouped[int(outcome.arrived / BIN_S)].append(outcome)
    bins = []
    for index, group in enumerate(grouped):
        latencies = [o.latency_s for o in group if o.latency_s is not None]
        ready, replicas = counts[index]
        bins.append(
            Bin(
                index * BIN_S,
                len(group),
                len(group) - len(latencies),
                quantile(latencies, 0.99),
                ready,
                replicas,
            )
        )
    return bins
