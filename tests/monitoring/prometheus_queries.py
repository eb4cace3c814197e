"""Parses and shortens PromQL expressions, and knows which series exist."""

import math
import re
from collections.abc import Iterable
from typing import Any, Final

import promql_parser

from service.monitoring.metrics import READINGS, Metrics
from training.boards import TRAINING_SERIES

# Series of Prometheus itself; of the cluster's exporters and of training; those with a GPU only.
OWN_SERIES: Final = frozenset({"up", "ALERTS"})
CLUSTER_SERIES: Final = frozenset(
    {
        "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        "DCGM_FI_DEV_XID_ERRORS",
        "kube_cronjob_created",
        "kube_cronjob_status_last_successful_time",
        "kube_deployment_spec_replicas",
        "kube_horizontalpodautoscaler_spec_max_replicas",
        "kube_horizontalpodautoscaler_status_condition",
        "kube_horizontalpodautoscaler_status_current_replicas",
        "kube_job_failed",
        "kube_pod_status_unschedulable",
        "kubelet_volume_stats_available_bytes",
        "kubelet_volume_stats_capacity_bytes",
        *TRAINING_SERIES,
    }
)
GPU_SERIES: Final = frozenset(name for name, _, _ in READINGS)
SUFFIXES: Final = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}

# An hour of the rules is a minute of the live test.
FACTOR: Final = 60
# With one scrape per second a range must hold several samples, also on a busy machine.
MIN_RANGE_S: Final = 6
PARTS: Final = re.compile(r"(\d+)(ms|[smhdwy])")
UNITS_S: Final = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
DURATION: Final = r"((?:\d+(?:ms|[smhdwy]))+)"
RANGE: Final = re.compile(rf"\[{DURATION}(?::{DURATION}?)?\]")
OFFSET: Final = re.compile(rf"\boffset\s+{DURATION}")


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Return every series selector of an expression.

    Raises:
        ValueError: The expression is not PromQL.
    """
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return list({selector.prettify(): selector for selector in found}.values())


def metric_names(expression: str) -> set[str]:
    """Names of the series that an expression reads."""
    return {selector.name for selector in selectors(expression) if selector.name is not None}


def known_series(groups: Iterable[Any]) -> frozenset[str]:
    """Names of exported series, of series recorded by these rules, and of Prometheus's own."""
    metrics = Metrics()
    metrics.record_first_ready()
    exported = {
        family.name + suffix
        for family in metrics.registry.collect()
        for suffix in SUFFIXES.get(family.type, ("",))
    }
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    return OWN_SERIES | CLUSTER_SERIES | exported | GPU_SERIES | recorded


def shorten(expression: str) -> str:
    """Divide all ranges and offsets of an expression by `FACTOR`."""

    def shorter(match: re.Match[str]) -> str:
        length = divided(match[1], at_least_s=MIN_RANGE_S)
        return f"[{length}:1s]" if ":" in match[0] else f"[{length}]"

    ranges = RANGE.sub(shorter, expression)
    return OFFSET.sub(lambda match: f"offset {divided(match[1], at_least_s=1)}", ranges)


def divided(duration: str, *, at_least_s: int) -> str:
    """Divide a duration by `FACTOR`, in whole seconds."""
    seconds = sum(int(number) * UNITS_S[unit] for number, unit in PARTS.findall(duration))
    return f"{max(at_least_s, math.ceil(seconds / FACTOR))}s"
