"""A faster clock changes durations and nothing else of the rules."""

import re
from pathlib import Path

import pytest

from tests.monitoring.rule_file import shipped_groups
from tests.monitoring.shortened_rules import DURATION, shorten, shorten_expression


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("rate(a_total[30m]) > 0.5", "rate(a_total[30s]) > 0.5"),
        ("rate(a_total[1m])", "rate(a_total[6s])"),
        ("sum_over_time(a[3d]) / 3600", "sum_over_time(a[4320s]) / 3600"),
        (
            "max_over_time(rate(a_total[1h30m])[2h:1m])",
            "max_over_time(rate(a_total[90s])[120s:1s])",
        ),
        ("a offset 5m unless b{le='5m'}", "a offset 5s unless b{le='5m'}"),
    ],
)
def test_durations_are_divided(expression: str, expected: str) -> None:
    assert shorten_expression(expression) == expected


def test_nothing_else_of_the_shipped_rules_changes(project_root: Path) -> None:
    groups = shipped_groups(project_root / "deploy" / "monitoring")
    shortened = shorten(groups)
    assert len(shortened) == len(groups)
    for group, faster in zip(groups, shortened, strict=True):
        for rule, quick in zip(group["rules"], faster["rules"], strict=True):
            times = ("expr", "for", "keep_firing_for")
            assert {k: v for k, v in rule.items() if k not in times} == {
                k: v for k, v in quick.items() if k not in times
            }
            assert ("for" in rule) == ("for" in quick)
            without = [re.sub(rf"\[{DURATION}\]", "[]", str(r["expr"])) for r in (rule, quick)]
            assert without[0] == without[1]
