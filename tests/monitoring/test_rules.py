"""Every alert fires and resolves at the right minute, by promtool's unit tests."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.monitoring.prometheus_queries import known_series, metric_names
from tests.monitoring.rule_file import (
    ALERTS,
    GROUPS,
    RULES,
    UNIT_TESTS,
    Check,
    checks_of,
    promtool,
    run_unit_tests,
)


def test_promtool_finds_no_fault_in_the_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": GROUPS}))
    checked = promtool("check", "rules", "--lint-fatal", str(path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_read_series_that_exist() -> None:
    known = known_series(GROUPS)
    for rule in (rule for group in GROUPS for rule in group["rules"]):
        assert metric_names(rule["expr"]) <= known, rule


def test_up_is_that_of_servers_or_that_of_proxies() -> None:
    servers = 'job=~"(.+-)?tipserve(-.+)?",job!~".+-proxy"'
    proxies = 'job=~"(.+-)?tipserve(-.+)?-proxy"'
    assert set(re.findall(r"\bup\{([^}]*)\}", RULES)) == {servers, proxies}


@pytest.mark.parametrize("name", UNIT_TESTS)
def test_the_unit_tests_pass(name: str, tmp_path: Path) -> None:
    finished = run_unit_tests(tmp_path, UNIT_TESTS[name])
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("name", UNIT_TESTS)
def test_groups_run_in_the_order_of_the_rules(name: str) -> None:
    assert UNIT_TESTS[name]["group_eval_order"] == [group["name"] for group in GROUPS]


def test_every_alert_is_tested_silent_then_firing_then_silent() -> None:
    begins, ends = set(), set()
    cases = [checks_of(case) for content in UNIT_TESTS.values() for case in content["tests"]]
    for before, after in (pair for case in cases for pair in pairwise(case)):
        assert before.alert == after.alert, "a case is of one alert"
        # Rules are evaluated every minute: with another `for`, one of the two checks fails.
        if not before.is_firing and after.is_firing and minutes(after) - minutes(before) == 1:
            begins.add(after.alert)
        if before.is_firing and not after.is_firing:
            ends.add(after.alert)
    assert begins == ends == ALERTS.keys()


def minutes(check: Check) -> int:
    return int(check.moment.removesuffix("m"))
