"""What Prometheus knows of a fleet: samples taken every so often, and the rates made of them.

`rate` is Prometheus' own arithmetic (`extrapolatedRate` in its promql/functions.go), so that what
the simulated autoscaler reads is as late and as coarse as it is in a cluster.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import simpy

from benchmarks.autoscaling.fleet import Fleet, Pod
from benchmarks.autoscaling.replica import Counters, Process

# Samples older than any window that is asked for are forgotten.
KEEP_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one pod told at one time."""

    time_s: float
    counters: Counters


Read = Callable[[Counters], float]


def rate(points: Sequence[tuple[float, float]], now_s: float, window_s: float) -> float | None:
    """Increase a second of a counter that never falls, as `rate(x[window])` gives it at `now_s`.

    Args:
        points: Times and values, the oldest first.
        now_s: When it is asked for.
        window_s: How far back it looks; the left end itself is outside.

    Returns:
        None where fewer than two samples lie in the window.
    """
    inside = [point for point in points if now_s - window_s < point[0] <= now_s]
    if len(inside) < 2:
        return None
    (first_s, first), (last_s, last) = inside[0], inside[-1]
    sampled_s, increase = last_s - first_s, last - first
    gap_s = sampled_s / (len(inside) - 1)
    before_s, after_s = first_s - (now_s - window_s), now_s - last_s
    # Where an end of the window is further away than a sample usually is, the series began or
    # ended there, and half a gap is added instead.
    if before_s >= 1.1 * gap_s:
        before_s = gap_s / 2
    if after_s >= 1.1 * gap_s:
        after_s = gap_s / 2
    if increase > 0 and first >= 0:
        before_s = min(before_s, sampled_s * first / increase)
    return increase * (sampled_s + before_s + after_s) / sampled_s / window_s


class Prometheus:
    """Scrapes every pod that runs, each at its own moment of the interval.

    Args:
        env: The simulation's clock.
        fleet: Whose pods it scrapes.
        interval_s: Between two scrapes of a pod.
        rng: For each pod's moment.
    """

    def __init__(
        self, env: simpy.Environment, fleet: Fleet, interval_s: float, rng: random.Random
    ) -> None:
        self._env, self._fleet, self._interval_s, self._rng = env, fleet, interval_s, rng
        self._samples: dict[int, deque[Sample]] = defaultdict(deque)
        self._known: set[int] = set()
        env.process(self._discover())

    def rates(self, read: Read, window_s: float) -> list[float]:
        """The rate of a counter, of each pod that has one in the window, also of those now gone."""
        if window_s > KEEP_S:
            raise ValueError(f"samples are kept for {KEEP_S:.0f} s, less than {window_s:.0f} s")
        now = self._env.now
        found = (
            rate([(s.time_s, read(s.counters)) for s in samples], now, window_s)
            for samples in self._samples.values()
        )
        return [value for value in found if value is not None]

    def latest(self, read: Read) -> list[float]:
        """A gauge of each pod that is still scraped."""
        running = {pod.number for pod in self._fleet.pods if pod.replica is not None}
        return [
            read(samples[-1].counters)
            for number, samples in self._samples.items()
            if number in running and samples
        ]

    def _discover(self) -> Process:
        while True:
            for pod in self._fleet.pods:
                if pod.replica is not None and pod.number not in self._known:
                    self._known.add(pod.number)
                    self._env.process(self._scrape(pod))
            yield self._env.timeout(1.0)

    def _scrape(self, pod: Pod) -> Process:
        yield self._env.timeout(self._rng.uniform(0, self._interval_s))
        samples = self._samples[pod.number]
        while pod in self._fleet.pods and pod.replica is not None:
            samples.append(Sample(self._env.now, pod.replica.scrape()))
            while samples[0].time_s < self._env.now - KEEP_S:
                samples.popleft()
            yield self._env.timeout(self._interval_s)
        yield self._env.timeout(KEEP_S)
        del self._samples[pod.number]
