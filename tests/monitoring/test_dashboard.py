"""Panels, queries, variables, links and types of the Grafana dashboard are valid."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.monitoring.prometheus_queries import known_series, metric_names
from tests.monitoring.rule_file import ALERTS, FOLDER, GROUPS, promtool
from tests.tools import TOOLS, miss, run

FILE: Final = FOLDER / "dashboard.json"
DASHBOARD: Final[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
# Those of collapsed rows are inside of the rows.
PANELS: Final = [
    panel
    for one in DASHBOARD["panels"]
    for panel in ([one] if one["type"] != "row" else one["panels"])
]
VARIABLES: Final = DASHBOARD["templating"]["list"]
# Grafana's own variables, with the values for tests.
BUILT_IN: Final = {"__rate_interval": "1m", "__interval": "30s", "__range": "1h"}
VARIABLE: Final = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
# Grafana units of our metrics; `none` is a ratio such as a burn rate.
UNITS: Final = {"short", "none", "percentunit", "s", "bytes", "reqps", "cps", "watt", "celsius"}
# Labels that titles name, and other words for them.
LABEL_OF: Final = {"replica": "pod", "status": "code"}
LABELS: Final = frozenset(
    {"caller", "code", "job", "method", "model", "pod", "protocol", "reason", "stage", "state"}
)
COMPILER_OPTIONS: Final = {
    "strict": True,
    "noEmit": True,
    "skipLibCheck": True,
    "module": "esnext",
    "moduleResolution": "bundler",
    "types": [],
}


def queries() -> list[str]:
    """Every expression of panels, annotations and variables."""
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    found += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    for variable in VARIABLES:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert match, variable
            found.append(f"count by ({match[2]}) ({match[1]})")
    return found


def filled(expression: str) -> str:
    """Fill in the variables as Grafana does with all values selected."""
    return VARIABLE.sub(lambda m: BUILT_IN.get(m[1] or m[2], ".*"), expression)


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
    for query in queries():
        assert {match[1] or match[2] for match in VARIABLE.finditer(query)} <= variables, query
        assert metric_names(filled(query)), query
        assert metric_names(filled(query)) <= series, query


def test_panels_show_what_their_titles_and_legends_name() -> None:
    assert not unlike_their_titles(PANELS)


def unlike_their_titles(panels: list[dict[str, Any]]) -> list[str]:
    """Queries without a label that the panel's title or their legend names."""
    found = []
    for panel in panels:
        _, _, ending = panel["title"].partition(" by ")
        named = {LABEL_OF.get(word, word) for word in re.findall(r"\w+", ending)} & LABELS
        for target in panel["targets"]:
            legend = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            grouped = re.search(r"\bby \(([^)]*)\)", target["expr"])
            level = re.search(r"(\w+):tipserve\w*:", target["expr"])
            labels = set(re.findall(r"\w+", grouped[1])) if grouped else set()
            if not grouped and level:
                labels = {label for label in LABELS if label in level[1].split("_")}
            if not named | legend <= labels:
                found.append(target["expr"])
    return found


def test_prometheus_reads_every_expression(tmp_path: Path) -> None:
    rules = [{"record": f"q:{n}", "expr": filled(query)} for n, query in enumerate(queries())]
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
