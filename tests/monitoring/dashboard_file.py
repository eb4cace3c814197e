"""Reads the Grafana dashboard file."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).resolve().parents[2] / "deploy" / "monitoring" / "dashboard.json"
# Grafana's own variables, with the values for tests.
BUILT_IN: Final = {"__rate_interval": "1m", "__interval": "30s", "__range": "1h"}
VARIABLE: Final = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
LABEL_VALUES: Final = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")
DASHBOARD: Final[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Query:
    """One expression and its location."""

    place: str
    expression: str

    def filled(self) -> str:
        """Fill in the variables as Grafana does with all values selected."""
        return VARIABLE.sub(lambda m: BUILT_IN.get(m[1] or m[2], ".*"), self.expression)


def panels() -> Iterator[dict[str, Any]]:
    """All panels, including those of collapsed rows, without the rows."""
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def queries() -> list[Query]:
    """Every expression of panels, annotations and variables."""
    found = [
        Query(f"{panel['title']} {target['refId']}", target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]
    found += [Query(a["name"], a["expr"]) for a in DASHBOARD["annotations"]["list"]]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert match, variable
            expression = f"count by ({match['label']}) ({match['selector']})"
            found.append(Query(f"${variable['name']}", expression))
    return found
