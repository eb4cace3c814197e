"""The shipped rules and their unit tests, and promtool run on them."""

import re
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tests.tools import run

Group = dict[str, Any]

LIMIT_S: Final = 120.0
FOLDER: Final = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
RULES: Final = (FOLDER / "prometheus_rule.yaml").read_text(encoding="utf-8")
GROUPS: Final[list[Group]] = yaml.safe_load(RULES)["spec"]["groups"]
ALERTS: Final[dict[str, Any]] = {
    rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule
}
# promtool's unit tests by file name; the folder may also contain a locally built rule file.
UNIT_TESTS: Final[dict[str, Any]] = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.glob("tests/*.yaml"))
    if path.name != "rules.yaml"
}
FIRING: Final = re.compile(r'ALERTS\{alertname="(\w+)",alertstate="firing"\}')


class Check(NamedTuple):
    """Expectation of one alert at one moment."""

    alert: str
    moment: str
    is_firing: bool


def checks_of(case: dict[str, Any]) -> list[Check]:
    """The expected alerts of a test case, in order."""
    return [
        Check(found[1], check["eval_time"], bool(check["exp_samples"]))
        for check in case["promql_expr_test"]
        if (found := FIRING.search(check["expr"]))
    ]


def run_unit_tests(
    folder: Path, content: dict[str, Any], groups: list[Group] = GROUPS
) -> subprocess.CompletedProcess[str]:
    """Run promtool on one file of tests, with the rules that its alerts need."""
    alerts = {check.alert for case in content["tests"] for check in checks_of(case)}
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": needed(alerts, groups)}))
    path = folder / "tests.yaml"
    path.write_text(yaml.safe_dump(content))
    return promtool("test", "rules", str(path))


def needed(alerts: Collection[str], groups: list[Group] = GROUPS) -> list[Group]:
    """Rules of these alerts, and of groups that record a series which they read; all if none."""
    chosen = [rule for group in groups for rule in group["rules"] if rule.get("alert") in alerts]
    text = yaml.safe_dump(chosen)
    found = []
    for group in groups:
        recording = [rule for rule in group["rules"] if "record" in rule]
        alerting = [rule for rule in group["rules"] if rule in chosen]
        if alerting or any(rule["record"] in text for rule in recording):
            found.append({**group, "rules": [*recording, *alerting]})
    return found if chosen else groups


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool and return its result."""
    return run("promtool", *arguments, timeout_s=LIMIT_S)
