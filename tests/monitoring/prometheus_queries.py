"""Parses PromQL expressions, and knows which series exist."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import promql_parser

from service.monitoring.metrics import READINGS, Metrics

METRICS_OF_PROXY: Final = Path(__file__).resolve().parents[2] / "deploy" / "proxy" / "metrics.js"
# Series of Prometheus itself; of several workers; of the proxy; of the cluster's exporters; those
# with a GPU only.
OWN_SERIES: Final = frozenset({"up", "ALERTS"})
WORKER_SERIES: Final = frozenset(
    {"tipserve_workers", "tipserve_workers_ready", "tipserve_worker_restarts_total"}
)
PROXY_SERIES: Final = frozenset(
    re.findall(r"# TYPE (tipserve_proxy_\w+)", METRICS_OF_PROXY.read_text(encoding="utf-8"))
)
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
    }
)
GPU_SERIES: Final = frozenset(READINGS)
SUFFIXES: Final = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


def metric_names(expression: str) -> set[str]:
    """Names of the series that an expression reads.

    Raises:
        ValueError: The expression is not PromQL.
    """
    found: set[str | None] = set()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            found.add(node.vector_selector.name)
        elif isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return {name for name in found if name is not None}


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
    others = OWN_SERIES | WORKER_SERIES | PROXY_SERIES | CLUSTER_SERIES | GPU_SERIES
    return others | exported | recorded
