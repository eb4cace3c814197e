"""Panels, queries, variables and links of the Grafana dashboard are valid."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.dashboard_file import complaints, panels, queries
from tests.monitoring.known_series import known_series
from tests.monitoring.rule_file import alerts_of, promtool, shipped_groups


@pytest.fixture(scope="module")
def dashboard(project_root: Path) -> dict[str, Any]:
    """The file, parsed."""
    text = (project_root / "deploy" / "monitoring" / "dashboard.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@pytest.fixture(scope="module")
def known(project_root: Path) -> frozenset[str]:
    """Series that the dashboard may read."""
    return known_series(shipped_groups(project_root / "deploy" / "monitoring"))


def test_the_dashboard_is_consistent(dashboard: dict[str, Any], known: frozenset[str]) -> None:
    assert complaints(dashboard, known) == []
    assert len(list(panels(dashboard))) > 40


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
