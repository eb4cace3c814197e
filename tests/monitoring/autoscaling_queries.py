"""What autoscalers ask Prometheus: KEDA by its triggers, an HPA by its adapter's rules."""

from pathlib import Path
from typing import Any

import yaml

from tests.monitoring.dashboard_file import Query


def keda_queries(project_root: Path) -> list[Query]:
    """The queries of the ScaledObject's triggers."""
    scaled = _load(project_root, "keda/scaledobject.yaml")
    return [
        Query(f"KEDA {number}", trigger["metadata"]["query"])
        for number, trigger in enumerate(scaled["spec"]["triggers"])
        if trigger["type"] == "prometheus"
    ]


def adapter_queries(project_root: Path, namespace: str, pods: str) -> list[Query]:
    """The queries of the adapter, as it sends them for these pods (a regular expression)."""
    found = []
    for number, rule in enumerate(
        _load(project_root, "hpa/prometheus_adapter.yaml")["rules"]["custom"]
    ):
        series = rule["seriesQuery"].partition("{")[0]
        query = (
            rule["metricsQuery"]
            .replace("<<.Series>>", series)
            .replace("<<.GroupBy>>", "pod")
            .replace("<<.LabelMatchers>>", f'namespace="{namespace}",pod=~"{pods}"')
        )
        found += [Query(f"series {number}", rule["seriesQuery"]), Query(f"HPA {number}", query)]
    return found


def _load(project_root: Path, name: str) -> Any:
    path = project_root / "deploy" / "kubernetes" / "components" / name
    return yaml.safe_load(path.read_text(encoding="utf-8"))
