"""Panels, queries, variables, links and types of the Grafana dashboard are valid."""

import json
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.monitoring.dashboard_file import BUILT_IN, DASHBOARD, FILE, VARIABLE, panels, queries
from tests.monitoring.prometheus_queries import known_series, metric_names
from tests.monitoring.rule_file import ALERTS, GROUPS, promtool
from tests.tools import TOOLS, miss, run

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
# Grafana units of our metrics; `none` is a ratio such as a burn rate.
UNITS: Final = {"short", "none", "percentunit", "s", "bytes", "reqps", "cps", "watt", "celsius"}
PANELS: Final = list(panels())
VARIABLES: Final = DASHBOARD["templating"]["list"]
QUERIES: Final = queries()
COMPILER_OPTIONS: Final = {
    "strict": True,
    "noEmit": True,
    "skipLibCheck": True,
    "module": "esnext",
    "moduleResolution": "bundler",
    "types": [],
}


def test_everything_reads_the_selected_prometheus() -> None:
    holders = [*PANELS, *(target for panel in PANELS for target in panel["targets"])]
    holders += DASHBOARD["annotations"]["list"]
    holders += [variable for variable in VARIABLES if variable["type"] == "query"]
    assert all(holder["datasource"] == DATASOURCE for holder in holders)
    assert ("datasource", "datasource") in {(one["type"], one["name"]) for one in VARIABLES}


def test_panels_have_a_description_and_a_unit() -> None:
    for panel in PANELS:
        assert len(panel["description"]) >= len(panel["title"]), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]


def test_queries_use_variables_and_series_that_exist() -> None:
    variables = {variable["name"] for variable in VARIABLES} | BUILT_IN.keys()
    series = known_series(GROUPS)
    for query in QUERIES:
        used = {match[1] or match[2] for match in VARIABLE.finditer(query.expression)}
        assert used <= variables, query
        names = metric_names(query.filled())
        assert names, query
        assert names <= series, query


def test_prometheus_reads_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"place:{number}", "expr": query.filled()}
        for number, query in enumerate(QUERIES)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    checked = promtool("check", "rules", "--lint=none", str(path))
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_links_lead_to_the_runbooks_sections() -> None:
    links = [link["url"] for panel in PANELS for link in panel.get("links", [])]
    assert all(url.startswith("${runbook:raw}") for url in links)
    anchors = {anchor for url in links if (anchor := url.partition("#")[2])}
    sections = {a["annotations"]["runbook_url"].partition("#")[2] for a in ALERTS.values()}
    assert anchors <= sections
    assert len(anchors) > len(sections) / 2


@pytest.mark.parametrize("release", ["11", "12", "13"])
def test_a_release_of_grafana_has_types_for_all_of_it(tmp_path: Path, release: str) -> None:
    package = TOOLS.parent / "grafana" / "node_modules" / f"grafana-{release}"
    if not package.is_dir():
        miss(f"{package} is missing: run scripts/install_tools.sh")
    types = Path(__file__).with_name("dashboard_types.ts").read_text(encoding="utf-8")
    source = tmp_path / "dashboard.ts"
    source.write_text(types + FILE.read_text(encoding="utf-8"), encoding="utf-8")
    paths = {"@grafana/schema": [str(package)], "@grafana/schema/*": [f"{package}/*"]}
    project = {"compilerOptions": {**COMPILER_OPTIONS, "paths": paths}, "files": [str(source)]}
    config = tmp_path / "tsconfig.json"
    config.write_text(json.dumps(project), encoding="utf-8")
    checked = run("tsc", "--project", config)
    assert (checked.returncode, checked.stdout) == (0, "")
