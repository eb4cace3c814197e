"""Grafana's own types hold for the dashboard: what a release does not know turns a test red."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.tools import TOOLS, find_tool, miss

LIMIT_S: Final = 60.0
RELEASES: Final = ("11", "12", "13")
TYPES: Final = Path(__file__).with_name("dashboard_types.ts")
OPTIONS: Final = {
    "strict": True,
    "noEmit": True,
    "skipLibCheck": True,
    "module": "esnext",
    "moduleResolution": "bundler",
    "types": [],
}
Fault = Callable[[Any], Any]
Check = Callable[[str, str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def text(project_root: Path) -> str:
    """The dashboard's JSON."""
    return (project_root / "deploy" / "monitoring" / "dashboard.json").read_text(encoding="utf-8")


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """What the compiler says of a dashboard by the types of a release of Grafana."""
    compiler = find_tool("tsc")

    def run(release: str, content: str) -> "subprocess.CompletedProcess[str]":
        package = TOOLS.parent / "grafana" / "node_modules" / f"grafana-{release}"
        if not package.is_dir():
            miss(f"{package} is missing: run scripts/install_tools.sh")
        source = tmp_path / "dashboard.ts"
        source.write_text(TYPES.read_text(encoding="utf-8") + content, encoding="utf-8")
        paths = {"@grafana/schema": [str(package)], "@grafana/schema/*": [f"{package}/*"]}
        project = {"compilerOptions": {**OPTIONS, "paths": paths}, "files": [str(source)]}
        config = tmp_path / "tsconfig.json"
        config.write_text(json.dumps(project), encoding="utf-8")
        return subprocess.run(
            [compiler, "--project", str(config)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    return run


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_of_grafana_knows_all_of_it(check: Check, text: str, release: str) -> None:
    checked = check(release, text)
    assert (checked.returncode, checked.stdout) == (0, "")


def drawn(dashboard: Any, kind: str) -> Any:
    return next(panel for panel in dashboard["panels"] if panel["type"] == kind)


FAULTS: Final[dict[str, Fault]] = {
    "a misspelt field": lambda d: d.update(refresch="30s"),
    "a misspelt field of a panel": lambda d: drawn(d, "stat").update(descripton="What it is."),
    "an option of no stat": lambda d: drawn(d, "stat")["options"].update(colourMode="value"),
    "a value of no option": lambda d: drawn(d, "stat")["options"].update(colorMode="text"),
    "a number as text": lambda d: drawn(d, "stat")["gridPos"].update(w="3"),
    "a misspelt style": lambda d: drawn(d, "timeseries")["fieldConfig"]["defaults"][
        "custom"
    ].update(fillOpacityy=3),
    "thresholds of no kind": lambda d: drawn(d, "timeseries")["fieldConfig"]["defaults"][
        "thresholds"
    ].update(mode="relative"),
    "a format of no query": lambda d: drawn(d, "table")["targets"][0].update(format="tabular"),
    "a panel of no kind": lambda d: drawn(d, "table").update(type="tables"),
    "a misspelt field in a closed row": lambda d: d["panels"][-1]["panels"][0].update(unit="s"),
    "a variable of no kind": lambda d: d["templating"]["list"][0].update(type="data"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(check: Check, text: str, name: str) -> None:
    dashboard = json.loads(text)
    FAULTS[name](dashboard)
    assert check(RELEASES[-1], json.dumps(dashboard)).returncode != 0
