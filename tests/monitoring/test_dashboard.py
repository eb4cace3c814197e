"""The Grafana dashboard holds together; what would mislead its readers turns a test red."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.dashboard_file import complaints, panels, queries
from tests.monitoring.known_series import known_series
from tests.monitoring.rule_file import alerts_of, promtool, shipped_groups

Fault = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def dashboard(project_root: Path) -> dict[str, Any]:
    """The file, parsed."""
    text = (project_root / "deploy" / "monitoring" / "dashboard.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@pytest.fixture(scope="module")
def known(project_root: Path) -> frozenset[str]:
    """Every series that it may read."""
    return known_series(shipped_groups(project_root / "deploy" / "monitoring"))


def test_there_is_nothing_to_complain_of(dashboard: dict[str, Any], known: frozenset[str]) -> None:
    assert complaints(dashboard, known) == []
    assert len(list(panels(dashboard))) > 40


def test_what_is_looked_at_first_is_at_the_top(dashboard: dict[str, Any]) -> None:
    """Is it broken, for whom, why: without scrolling, without opening a row."""
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert titles[:3] == ["Ready replicas", "Not ready or down", "Alerts"]
    assert titles.index("Alerts that fire") < 10
    top = [p for p in dashboard["panels"] if p["gridPos"]["y"] == 0]
    assert [p["type"] for p in top] == ["stat"] * 8
    assert all(p["links"] for p in top if p["title"] != "Requests")


def test_prometheus_reads_every_expression(dashboard: dict[str, Any], tmp_path: Path) -> None:
    rules = [
        {"record": f"place:{number}", "expr": query.filled()}
        for number, query in enumerate(queries(dashboard))
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    checked = promtool("check", "rules", "--lint=none", str(path))
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_links_lead_to_the_runbooks_sections(dashboard: dict[str, Any], project_root: Path) -> None:
    links = [link["url"] for panel in panels(dashboard) for link in panel.get("links", [])]
    assert all(url.startswith("${runbook:raw}") for url in links)
    anchors = {anchor for url in links if (anchor := url.partition("#")[2])}
    alerts = alerts_of(shipped_groups(project_root / "deploy" / "monitoring")).values()
    sections = {alert["annotations"]["runbook_url"].partition("#")[2] for alert in alerts}
    assert anchors <= sections
    assert len(anchors) > len(sections) / 2


def change(place: str, value: Any) -> Fault:
    """Set what a dotted path of the first panel names."""

    def fault(dashboard: dict[str, Any]) -> None:
        *path, last = place.split(".")
        holder: Any = dashboard["panels"][0]
        for name in path:
            holder = holder[int(name) if name.isdigit() else name]
        holder[last] = value

    return fault


def first_of(kind: str) -> Callable[[dict[str, Any]], Any]:
    return lambda dashboard: next(p for p in panels(dashboard) if p["type"] == kind)


FAULTS: dict[str, tuple[Fault, str]] = {
    "an id twice": (change("id", 2), "the id 2 is used 2 times"),
    "a title twice": (change("title", "Alerts"), "the title 'Alerts' is used 2 times"),
    "one panel over another": (change("gridPos.w", 4), "Ready replicas lies over"),
    "a panel beside the grid": (change("gridPos.x", 22), "Ready replicas leaves the grid"),
    "a Prometheus of our own": (
        change("targets.0.datasource", {"type": "prometheus", "uid": "P1"}),
        "Ready replicas does not ask the chosen Prometheus",
    ),
    "no description": (change("description", ""), "Ready replicas is not described"),
    "no unit": (change("fieldConfig.defaults.unit", None), "Ready replicas has no unit"),
    "no thresholds": (
        change("fieldConfig.defaults.thresholds", {}),
        "Ready replicas has no thresholds",
    ),
    "no PromQL": (change("targets.0.expr", "sum(tipserve_ready"), "Ready replicas A is no PromQL"),
    "a metric that is gone": (
        change("targets.0.expr", "sum(tipserve_reddy)"),
        "Ready replicas A reads tipserve_reddy, which nobody gives",
    ),
    "a counter without its end": (
        change("targets.0.expr", "sum(rate(tipserve_requests[$__rate_interval]))"),
        "Ready replicas A reads tipserve_requests, which nobody gives",
    ),
    "a variable that is not there": (
        change("targets.0.expr", 'sum(tipserve_ready{zone="$zone"})'),
        "Ready replicas A uses $zone, which is not defined",
    ),
    "no metric at all": (change("targets.0.expr", "vector(1)"), "Ready replicas A reads nothing"),
    "a nameless line": (
        lambda d: first_of("timeseries")(d)["targets"][0].update(legendFormat="__auto"),
        "has no legend",
    ),
    "a hidden panel": (
        lambda d: next(p for p in d["panels"] if p.get("collapsed")).update(collapsed=False),
        "which Grafana does not show",
    ),
    "a fault in a closed row": (
        lambda d: [p for p in d["panels"] if p.get("collapsed")][-1]["panels"][0]["targets"][
            0
        ].update(expr="tipserve_gpu"),
        "reads tipserve_gpu, which nobody gives",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(
    dashboard: dict[str, Any], known: frozenset[str], name: str
) -> None:
    fault, complaint = FAULTS[name]
    broken = deepcopy(dashboard)
    fault(broken)
    found = complaints(broken, known)
    assert any(complaint in one for one in found), found
