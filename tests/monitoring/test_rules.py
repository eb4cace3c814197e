"""Every alert fires and resolves at the right minute, by promtool's unit tests."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.monitoring.rule_file import (
    Check,
    Group,
    UnitTest,
    alerts_of,
    promtool,
    run_unit_tests,
    shipped_groups,
    unit_tests,
)

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
TESTS = unit_tests(FOLDER)


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return shipped_groups(FOLDER)


def test_promtool_finds_no_fault_in_the_rules(groups: list[Group], tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups}))
    checked = promtool("check", "rules", "--lint-fatal", str(path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_two_edits_make_a_plain_rule_file(groups: list[Group]) -> None:
    """As `sed "1,/^spec:/d; s/^  //"` does, for use without the operator."""
    text = (FOLDER / "prometheus_rule.yaml").read_text(encoding="utf-8")
    plain = re.sub("^  ", "", text.partition("\nspec:\n")[2], flags=re.MULTILINE)
    assert yaml.safe_load(plain) == {"groups": groups}


def minutes(check: Check) -> int:
    return int(check.moment.removesuffix("m"))


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_the_unit_tests_pass(test: UnitTest, groups: list[Group], tmp_path: Path) -> None:
    finished = run_unit_tests(tmp_path, [test], groups)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_every_alert_is_seen_silent_then_firing_then_silent(groups: list[Group]) -> None:
    begins, ends = set(), set()
    for before, after in (pair for t in TESTS for case in t.checks() for pair in pairwise(case)):
        assert before.alert == after.alert, "a case is of one alert"
        # Rules are evaluated every minute there: with a different `for` one of the two fails.
        if not before.is_firing and after.is_firing and minutes(after) - minutes(before) == 1:
            begins.add(after.alert)
        if before.is_firing and not after.is_firing:
            ends.add(after.alert)
    assert begins == ends == set(alerts_of(groups))
