"""Autoscaling queries: KEDA's triggers and the rules of the HPA's adapter."""

from pathlib import Path
from typing import Any

import yaml

from tests.monitoring.dashboard_file import Query


def keda_queries(project_root: Path) -> list[Query]:
    """Queries of the ScaledObject's triggers."""
    scaled = _load(project_root, "keda/scaledobject.yaml")
    return [
        Query(f"KEDA {trigger['name']}", trigger["metadata"]["query"])
        for trigger in scaled["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    ]


def adapter_queries(project_root: Path, namespace: str) -> list[Query]:
    """Queries of the adapter's rules, as sent for autoscalers of this namespace."""
    rules = _load(project_root, "hpa/prometheus_adapter.yaml")["rules"]
    return [
        Query(
            f"HPA {rule['name']['as']}",
            rule["metricsQuery"]
            .replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
            .replace("<<.LabelMatchers>>", f'namespace="{namespace}"'),
        )
        for rule in rules["external"]
    ]


def adapter_series(project_root: Path) -> list[Query]:
    """Series that the adapter uses for discovery."""
    rules = _load(project_root, "hpa/prometheus_adapter.yaml")["rules"]
    return [Query(rule["name"]["as"], rule["seriesQuery"]) for rule in rules["external"]]


def _load(project_root: Path, name: str) -> Any:
    path = project_root / "deploy" / "kubernetes" / "components" / name
    return yaml.safe_load(path.read_text(encoding="utf-8"))
