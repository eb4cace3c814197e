"""Replicas that come and go behind a balancer, and the callers who ask them.

Pods take time to start, are given requests once they are ready, and finish what they have when they
are stopped. Callers do not repeat what was refused, so that offered and answered can be compared.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import simpy

from benchmarks.autoscaling.replica import Process, Replica, ReplicaSpec, Request

Balancer = Literal["random", "least"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodStart:
    """What passes between a pod's creation and its first request, in seconds.

    Attributes:
        schedule_s: Scheduling, sandbox and container.
        pull_s: The image; 0 where the node has it.
        node_s: A node for it; 0 where one has room.
        load_s: The model: verified, loaded and warm.
        probe_s: Period of the startup probe; up to one period more passes until it is seen.
    """

    schedule_s: float = 2.0
    pull_s: float = 0.0
    node_s: float = 0.0
    load_s: float = 2.0
    probe_s: float = 2.0

    def draw_s(self, rng: random.Random) -> float:
        """Of one pod."""
        fixed_s = self.schedule_s + self.pull_s + self.node_s + self.load_s
        return fixed_s + rng.uniform(0, self.probe_s)


@dataclass(slots=True, eq=False)
class Pod:
    """A replica and where it is in its life."""

    number: int
    created: float
    replica: Replica | None = None
    is_stopping: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether the balancer may choose it."""
        return self.replica is not None and not self.is_stopping


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request: latency and wait in seconds, or None where it was refused."""

    arrived: float
    latency_s: float | None
    queue_s: float | None


class Fleet:
    """The pods of one Deployment.

    Args:
        env: The simulation's clock.
        spec: What every replica is made of.
        start: How long pods take.
        rng: For start times, the balancer and the spread of batches.
        balancer: `random`, as a Service spreads connections, or `least` requests in flight.
    """

    def __init__(
        self,
        env: simpy.Environment,
        spec: ReplicaSpec,
        start: PodStart,
        *,
        rng: random.Random,
        balancer: Balancer = "random",
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.pods: list[Pod] = []
        self._env, self._spec, self._start, self._rng = env, spec, start, rng
        self._balancer: Balancer = balancer
        self._num_pods = 0

    @property
    def replicas(self) -> int:
        """Pods that are meant to be there, whether ready or not."""
        return sum(not pod.is_stopping for pod in self.pods)

    @property
    def ready(self) -> list[Pod]:
        """Those that the balancer may choose."""
        return [pod for pod in self.pods if pod.is_ready]

    def begin(self, count: int) -> None:
        """Pods that are ready from the start."""
        for _ in range(count):
            self._become_ready(self._create())

    def scale_to(self, count: int) -> None:
        """Create pods or stop them: first those that are not ready, then the youngest."""
        while self.replicas < count:
            self._env.process(self._starting(self._create()))
        staying = [pod for pod in self.pods if not pod.is_stopping]
        staying.sort(key=lambda pod: (not pod.is_ready, pod.number), reverse=True)
        for pod in staying[: max(0, len(staying) - count)]:
            pod.is_stopping = True
            self._env.process(self._stopping(pod))

    def ask(self, request: Request) -> None:
        """Send one request through the balancer; with no pod ready it is refused."""
        ready = self.ready
        pod = self._choose(ready) if ready else None
        if pod is None or pod.replica is None or not pod.replica.offer(request):
            self.outcomes.append(Outcome(request.arrived, None, None))

    def _choose(self, ready: Sequence[Pod]) -> Pod:
        if self._balancer == "random":
            return self._rng.choice(ready)
        return min(ready, key=lambda pod: pod.replica.counters.inflight if pod.replica else 0)

    def _create(self) -> Pod:
        pod = Pod(self._num_pods, self._env.now)
        self._num_pods += 1
        self.pods.append(pod)
        return pod

    def _become_ready(self, pod: Pod) -> None:
        pod.replica = Replica(self._env, self._spec, self._rng, self._answered)

    def _starting(self, pod: Pod) -> Process:
        yield self._env.timeout(self._start.draw_s(self._rng))
        if pod.is_stopping:
            self.pods.remove(pod)
        else:
            self._become_ready(pod)

    def _stopping(self, pod: Pod) -> Process:
        while pod.replica is not None and pod.replica.counters.inflight:
            yield self._env.timeout(1.0)
        if pod.replica is not None:
            self.pods.remove(pod)

    def _answered(self, request: Request) -> None:
        latency_s = self._env.now - request.arrived
        self.outcomes.append(Outcome(request.arrived, latency_s, request.queue_s))


@dataclass(frozen=True, slots=True)
class Phase:
    """So many requests a second until so many seconds after the start."""

    until_s: float
    rate: float


def callers(
    env: simpy.Environment,
    fleet: Fleet,
    phases: Sequence[Phase],
    *,
    items: Callable[[], Mapping[str, tuple[int, int]]],
    rng: random.Random,
) -> Process:
    """A Poisson stream whose rate changes by steps; `items` says what the next request asks for."""
    for phase in phases:
        # A Poisson stream has no memory, so the next gap may be drawn anew where the rate changes.
        while phase.rate > 0:
            gap_s = rng.expovariate(phase.rate)
            if env.now + gap_s >= phase.until_s:
                break
            yield env.timeout(gap_s)
            fleet.ask(Request(env.now, items()))
        if env.now < phase.until_s:
            yield env.timeout(phase.until_s - env.now)
