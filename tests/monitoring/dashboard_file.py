"""Reads and checks the Grafana dashboard file."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from tests.monitoring.prometheus_queries import metric_names

Dashboard = Mapping[str, Any]

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24
# Grafana units of our metrics; `none` is a ratio such as a burn rate.
UNITS: Final = frozenset(
    {"short", "none", "percentunit", "s", "bytes", "reqps", "cps", "watt", "celsius"}
)
# Grafana's own variables, with the values for tests.
BUILT_IN: Final = {"__rate_interval": "1m", "__interval": "30s", "__range": "1h"}
VARIABLE: Final = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
LABEL_VALUES: Final = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")


@dataclass(frozen=True)
class Query:
    """One expression and its location."""

    place: str
    expression: str

    def filled(self, rate_interval: str = BUILT_IN["__rate_interval"]) -> str:
        """Fill in the variables as Grafana does with all values selected."""
        values = {**BUILT_IN, "__rate_interval": rate_interval}
        return VARIABLE.sub(lambda m: values.get(m[1] or m[2], ".*"), self.expression)


def panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    """All panels, including those of collapsed rows, without the rows."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def queries(dashboard: Dashboard) -> list[Query]:
    """Every expression of panels, annotations and variables."""
    found = [
        Query(f"{panel['title']} {target['refId']}", target["expr"])
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]
    found += [Query(a["name"], a["expr"]) for a in dashboard["annotations"]["list"]]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            match = LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert match, variable
            expression = f"count by ({match['label']}) ({match['selector']})"
            found.append(Query(f"${variable['name']}", expression))
    return found


def complaints(dashboard: Dashboard, known_metrics: frozenset[str]) -> list[str]:
    """Return all faults; empty if there are none."""
    return [
        *_numbering(dashboard),
        *_layout(dashboard),
        *_sources(dashboard),
        *_looks(dashboard),
        *_variables(dashboard),
        *_expressions(dashboard, known_metrics),
    ]


def _numbering(dashboard: Dashboard) -> Iterator[str]:
    rows = [panel for panel in dashboard["panels"] if panel["type"] == "row"]
    ids = Counter(panel["id"] for panel in [*rows, *panels(dashboard)])
    yield from (f"the id {number} is used {n} times" for number, n in ids.items() if n > 1)
    titles = Counter(panel["title"] for panel in [*rows, *panels(dashboard)])
    yield from (f"the title {title!r} is used {n} times" for title, n in titles.items() if n > 1)


def _layout(dashboard: Dashboard) -> Iterator[str]:
    closed = [panel for panel in dashboard["panels"] if panel.get("collapsed")]
    for group in (dashboard["panels"], *(row["panels"] for row in closed)):
        for panel in group:
            grid = panel["gridPos"]
            if grid["x"] < 0 or grid["w"] < 1 or grid["h"] < 1 or grid["x"] + grid["w"] > WIDTH:
                yield f"{panel['title']} leaves the grid"
        for one, other in combinations(group, 2):
            if _overlap(one["gridPos"], other["gridPos"]):
                yield f"{one['title']} lies over {other['title']}"
    for row in dashboard["panels"]:
        if row["type"] == "row" and not row["collapsed"] and row["panels"]:
            yield f"the open row {row['title']} holds panels, which Grafana does not show"


def _overlap(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def _sources(dashboard: Dashboard) -> Iterator[str]:
    variables = dashboard["templating"]["list"]
    holders: list[tuple[str, Mapping[str, Any]]] = [
        *((panel["title"], panel) for panel in panels(dashboard)),
        *((p["title"], target) for p in panels(dashboard) for target in p["targets"]),
        *((a["name"], a) for a in dashboard["annotations"]["list"]),
        *((v["name"], v) for v in variables if v["type"] == "query"),
    ]
    for name, holder in holders:
        if holder.get("datasource") != DATASOURCE:
            yield f"{name} does not ask the chosen Prometheus"
    if not any((v["type"], v["name"]) == ("datasource", "datasource") for v in variables):
        yield "no Prometheus can be chosen"


def _looks(dashboard: Dashboard) -> Iterator[str]:
    for panel in panels(dashboard):
        title, defaults = panel["title"], panel["fieldConfig"]["defaults"]
        if len(panel.get("description", "")) < len(title):
            yield f"{title} is not described"
        if defaults.get("unit") not in UNITS:
            yield f"{title} has an unknown unit: {defaults.get('unit')}"
        if not defaults.get("thresholds", {}).get("steps"):
            yield f"{title} has no thresholds"
        refs = Counter(target["refId"] for target in panel["targets"])
        if not refs or max(refs.values()) > 1:
            yield f"{title} has no queries, or two of one name"
        # A table takes its names from labels.
        for target in panel["targets"]:
            if panel["type"] == "timeseries" and not target.get("legendFormat", "").strip("_auto"):
                yield f"{title} {target['refId']} has no legend"


def _variables(dashboard: Dashboard) -> Iterator[str]:
    known = {v["name"] for v in dashboard["templating"]["list"]} | BUILT_IN.keys()
    for query in queries(dashboard):
        for match in VARIABLE.finditer(query.expression):
            if (match[1] or match[2]) not in known:
                yield f"{query.place} uses {match[0]}, which is not defined"


def _expressions(dashboard: Dashboard, known_metrics: frozenset[str]) -> Iterator[str]:
    for query in queries(dashboard):
        try:
            names = metric_names(query.filled())
        except ValueError as error:
            yield f"{query.place} is no PromQL: {error}"
            continue
        if not names:
            yield f"{query.place} reads nothing"
        for name in sorted(names - known_metrics):
            yield f"{query.place} reads {name}, which is not provided"
