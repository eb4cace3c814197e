"""Autoscalers beside the shipped one, to see what each of its parts is for."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from benchmarks.autoscaling.autoscaler import (
    DEFAULT_DOWN,
    DEFAULT_UP,
    Policy,
    Rules,
    ScalerSettings,
    Target,
)

SELECTOR: Final = '{job="tipserve",stage="queue"}'
STAGE: Final = "tipserve_stage_duration_seconds"
P90_WAIT: Final = (
    f"histogram_quantile(0.9, sum by (le) (rate({STAGE}_bucket{SELECTOR}[1m]))) >= 0 or vector(0)"
)
OLDEST: Final = 'avg(tipserve_queue_oldest_seconds{job="tipserve"}) or vector(0)'
# Kubernetes' usual advice; here of all CPUs that the lanes have, not of what the pod requests.
CPU_TARGET: Final = 0.7


def alternatives(
    shipped: ScalerSettings, cpus_per_request: float
) -> Iterator[tuple[str, ScalerSettings]]:
    """Names and settings, the shipped ones first.

    Args:
        shipped: With a target on queue wait first and one on the lanes' busy share behind it.
        cpus_per_request: CPUs that a replica can use, over those that it requests.
    """
    wait, busy = shipped.targets
    yield "shipped: queue wait and busy lanes", shipped
    defaults = replace(shipped, up=DEFAULT_UP, down=DEFAULT_DOWN)
    yield "the same, Kubernetes' default behaviour", defaults
    slow = Rules(stabilization_s=0, policies=(Policy("Percent", 100, 60), Policy("Pods", 4, 60)))
    yield "the same, at most double in 60 s", replace(shipped, up=slow)
    yield "the same, at most 20 replicas", replace(shipped, max_replicas=20)
    quadruple = Rules(stabilization_s=0, policies=(Policy("Percent", 300, 120),))
    yield (
        "the same, at most 20 replicas, four times as many in 120 s",
        replace(shipped, max_replicas=20, up=quadruple),
    )
    oldest = Target(OLDEST, "Value", 8 * wait.value)
    yield (
        "oldest item at eight times the target, and busy lanes, at most 20 replicas",
        replace(shipped, max_replicas=20, targets=(oldest, busy)),
    )
    yield "queue wait alone", replace(shipped, targets=(wait,))
    yield "queue wait alone, default behaviour", replace(defaults, targets=(wait,))
    p90 = Target(P90_WAIT, "Value", wait.value)
    yield "p90 of queue wait alone", replace(shipped, targets=(p90,))
    yield (
        "age of the oldest item, and busy lanes",
        replace(shipped, targets=(Target(OLDEST, "Value", wait.value), busy)),
    )
    yield "busy lanes alone", replace(shipped, targets=(busy,))
    cpu = Target("cpu", "Utilization", CPU_TARGET * cpus_per_request)
    yield "CPU utilisation (HPA), default behaviour", replace(defaults, targets=(cpu,))
    average = Target(wait.query, "AverageValue", wait.value)
    yield "queue wait as AverageValue, KEDA's default type", replace(shipped, targets=(average,))
