"""Names of all series: exported by the service, recorded, and Prometheus's own."""

from collections.abc import Iterable
from typing import Any, Final

from service.monitoring.metrics import READINGS, Metrics

# Series that Prometheus itself creates.
OWN: Final = frozenset({"up", "ALERTS"})
SUFFIXES: Final = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


def known_series(groups: Iterable[Any]) -> frozenset[str]:
    """Names of exported series, of series recorded by these rules, and of Prometheus's own."""
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
    """Names of series that exist only with a GPU."""
    return frozenset(name for name, _, _ in READINGS)
