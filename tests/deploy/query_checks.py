"""Queries: what autoscalers and rules ask Prometheus for is something that the server says."""

import re
from collections.abc import Iterator
from functools import cache

from service.monitoring.metrics import READINGS, Metrics
from tests.deploy.workloads import Manifest, called, of_kind

# Of what rules record, the name has colons.
NAME = re.compile(r"\b[a-z_][a-z0-9_:]*")
SUFFIX = re.compile(r"_(bucket|sum|count|total|created)$")


def metrics(documents: list[Manifest]) -> list[str]:
    """Every metric of ours in a query is one that the server has."""
    return [
        f"{called(document)}: the server has no metric {name}"
        for document, query in _queries(documents)
        for name in NAME.findall(query)
        if name.startswith("tipserve_") and ":" not in name
        if not {name, SUFFIX.sub("", name)} & served()
    ]


def recorded(documents: list[Manifest]) -> list[str]:
    """Every series that a rule would record is recorded by one that is applied with it."""
    records = {
        rule["record"]
        for one in of_kind(documents, "PrometheusRule")
        for group in one["spec"]["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    return [
        f"{called(document)}: no rule records {name}"
        for document, query in _queries(documents)
        for name in NAME.findall(query)
        if ":" in name and name not in records
    ]


@cache
def served() -> frozenset[str]:
    """Names of all metrics, without what histograms and counters put behind them."""
    everything = Metrics()
    everything.watch_certificate(lambda: 0.0)
    names = {family.name for family in everything.registry.collect()}
    return frozenset(names | {name for name, _, _ in READINGS})


def _queries(documents: list[Manifest]) -> Iterator[tuple[Manifest, str]]:
    for document in of_kind(documents, "ScaledObject"):
        for trigger in document["spec"]["triggers"]:
            yield document, trigger["metadata"].get("query", "")
    for document in of_kind(documents, "PrometheusRule"):
        for group in document["spec"]["groups"]:
            for rule in group["rules"]:
                yield document, rule["expr"]
