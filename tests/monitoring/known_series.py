"""The names of all series that Prometheus can have of us: exported, recorded, and its own."""

from collections.abc import Iterable
from typing import Any, Final

from service.monitoring.metrics import READINGS, Metrics

# What Prometheus makes itself.
OWN: Final = frozenset({"up", "ALERTS"})
SUFFIXES: Final = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


def known_series(groups: Iterable[Any]) -> frozenset[str]:
    """Names of what the service exports, of what these rules record, and Prometheus's own."""
    metrics = Metrics()
    metrics.watch_certificate(lambda: 0.0)
    exported = {
        family.name + suffix
        for family in metrics.registry.collect()
        for suffix in SUFFIXES.get(family.type, ("",))
    }
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    return OWN | exported | gpu_series() | recorded


def gpu_series() -> frozenset[str]:
    """Names of what is told of GPUs, where there are any."""
    return frozenset(name for name, _, _ in READINGS)
