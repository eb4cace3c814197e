"""What the HorizontalPodAutoscaler's controller decides; KEDA only gives it metrics.

After `pkg/controller/podautoscaler` of Kubernetes (`replica_calculator.go`, `horizontal.go`): the
ratio of metric and target with a tolerance, times the pods that are ready; the most that any metric
asks for; stabilisation windows; policies. KEDA's polling interval decides of 0 replicas and 1 only:
between 1 and the maximum the controller asks by its own period, and KEDA passes the query on.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

TargetKind = Literal["Value", "AverageValue", "Utilization"]


@dataclass(frozen=True, slots=True)
class Policy:
    """So many pods, or so many percent of them, in a period."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """One direction's part of `behavior`."""

    stabilization_s: float
    policies: tuple[Policy, ...]
    select: Literal["Max", "Min", "Disabled"] = "Max"


# What the API server fills in where a manifest says nothing.
DEFAULT_UP: Final = Rules(
    stabilization_s=0, policies=(Policy("Pods", 4, 15), Policy("Percent", 100, 15))
)
DEFAULT_DOWN: Final = Rules(stabilization_s=300, policies=(Policy("Percent", 100, 15),))


@dataclass(frozen=True, slots=True)
class Target:
    """What a metric should be. `query` is PromQL, or `cpu`."""

    query: str
    kind: TargetKind
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalerSettings:
    """What a ScaledObject or a HorizontalPodAutoscaler says, and the controller's own defaults."""

    min_replicas: int
    max_replicas: int
    targets: tuple[Target, ...]
    up: Rules = DEFAULT_UP
    down: Rules = DEFAULT_DOWN
    sync_s: float = 15.0
    tolerance: float = 0.1


class Controller:
    """Decides how many replicas there should be, once in each period."""

    def __init__(self, settings: ScalerSettings) -> None:
        self._settings = settings
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def decide(self, now_s: float, current: int, ready: int, values: Sequence[float]) -> int:
        """The new number of replicas.

        Args:
            now_s: The time.
            current: Replicas that are meant to be there.
            ready: Pods of them that are ready.
            values: Of each target's metric.
        """
        asked = [
            self.wanted(target, value, current, ready)
            for target, value in zip(self._settings.targets, values, strict=True)
        ]
        stable = self._stabilized(now_s, current, max(asked))
        new = self._limited(now_s, current, stable)
        if new != current:
            self._changes.append((now_s, new - current))
        return new

    def wanted(self, target: Target, value: float, current: int, ready: int) -> int:
        """Replicas that one metric asks for."""
        pods = current if target.kind == "AverageValue" else 1
        ratio = value / (target.value * pods)
        if abs(1 - ratio) <= self._settings.tolerance:
            return current
        if target.kind == "AverageValue":
            return math.ceil(value / target.value)
        return math.ceil(ratio * ready)

    def _stabilized(self, now_s: float, current: int, wanted: int) -> int:
        """Up by the least and down by the most that was wanted in either window."""
        up_s, down_s = self._settings.up.stabilization_s, self._settings.down.stabilization_s
        self._recommended.append((now_s, wanted))
        while self._recommended[0][0] < now_s - max(up_s, down_s):
            self._recommended.popleft()
        up = min(count for time_s, count in self._recommended if time_s >= now_s - up_s)
        down = max(count for time_s, count in self._recommended if time_s >= now_s - down_s)
        return min(max(current, up), down)

    def _limited(self, now_s: float, current: int, wanted: int) -> int:
        settings = self._settings
        if wanted > current:
            most = self._bound(now_s, current, settings.up, +1)
            return min(wanted, max(most, current), settings.max_replicas)
        if wanted < current:
            least = self._bound(now_s, current, settings.down, -1)
            return max(wanted, min(least, current), settings.min_replicas)
        return min(max(current, settings.min_replicas), settings.max_replicas)

    def _bound(self, now_s: float, current: int, rules: Rules, direction: int) -> int:
        """How far the policies let it go, counted from where their periods began."""
        if rules.select == "Disabled":
            return current
        bounds = []
        for policy in rules.policies:
            changed = sum(by for time_s, by in self._changes if time_s > now_s - policy.period_s)
            begin = current - changed
            if policy.kind == "Pods":
                bounds.append(begin + direction * policy.value)
            else:
                exact = begin * (1 + direction * policy.value / 100)
                # Up it is rounded up, down it is cut off.
                bounds.append(math.ceil(exact) if direction > 0 else math.floor(exact))
        is_widest = rules.select == "Max"
        return max(bounds) if is_widest == (direction > 0) else min(bounds)
