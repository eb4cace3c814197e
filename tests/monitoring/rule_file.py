"""The shipped rules and their unit tests as data, and promtool run on them."""

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tests.tools import find_tool

LIMIT_S: Final = 120.0
FIRING: Final = re.compile(r'ALERTS\{alertname="(\w+)",alertstate="firing"\}')

Group = dict[str, Any]


def shipped_groups(monitoring: Path) -> list[Group]:
    """Rule groups of the shipped PrometheusRule."""
    text = (monitoring / "prometheus_rule.yaml").read_text(encoding="utf-8")
    groups: list[Group] = yaml.safe_load(text)["spec"]["groups"]
    return groups


def alerts_of(groups: Iterable[Group]) -> dict[str, dict[str, Any]]:
    """Alerts by name."""
    return {r["alert"]: r for group in groups for r in group["rules"] if "alert" in r}


class Check(NamedTuple):
    """Expectation of one alert at one moment."""

    alert: str
    moment: str
    is_firing: bool


@dataclass(frozen=True)
class UnitTest:
    """One file of promtool's unit tests.

    Attributes:
        name: File name without suffix.
        content: Parsed content.
    """

    name: str
    content: dict[str, Any]

    def checks(self) -> Iterator[list[Check]]:
        """Expected alerts of each case, in order."""
        return map(_checks, self.content["tests"])

    @property
    def alerts(self) -> set[str]:
        """Names of the alerts in its expectations."""
        return {check.alert for case in self.checks() for check in case}

    def needed(self, groups: Iterable[Group]) -> list[Group]:
        """Rules for these alerts, and all recording rules; all rules if no alert is named."""
        if not self.alerts:
            return list(groups)
        rules = [(g, [r for r in g["rules"] if r.get("alert") in self.alerts]) for g in groups]
        read = yaml.safe_dump([alerts for _, alerts in rules])
        return [
            {**group, "rules": [*_recorded(group), *alerts]}
            for group, alerts in rules
            if alerts or any(rule["record"] in read for rule in _recorded(group))
        ]


def unit_tests(monitoring: Path) -> list[UnitTest]:
    """All unit tests; the folder may also contain a locally built rule file."""
    paths = sorted(set(monitoring.glob("tests/*.yaml")) - {monitoring / "tests" / "rules.yaml"})
    return [UnitTest(p.stem, yaml.safe_load(p.read_text(encoding="utf-8"))) for p in paths]


def run_unit_tests(
    folder: Path, tests: Iterable[UnitTest], groups: list[Group]
) -> subprocess.CompletedProcess[str]:
    """Run promtool on these tests and rules in an empty folder."""
    files = []
    for test in tests:
        place = folder / test.name
        place.mkdir(parents=True)
        (place / "rules.yaml").write_text(yaml.safe_dump({"groups": test.needed(groups)}))
        files.append(place / "tests.yaml")
        files[-1].write_text(yaml.safe_dump(test.content))
    return promtool("test", "rules", *map(str, files))


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool and return its result."""
    command = [find_tool("promtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def _checks(case: Mapping[str, Any]) -> list[Check]:
    return [
        Check(found[1], check["eval_time"], bool(check["exp_samples"]))
        for check in case["promql_expr_test"]
        if (found := FIRING.search(check["expr"]))
    ]


def _recorded(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [rule for rule in group["rules"] if "record" in rule]
