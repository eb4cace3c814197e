"""Texts of alerts and of the runbook fit the rules and the service."""

import re
from pathlib import Path

import promql_parser
import pytest

from service.grpc.generated.open_inference_pb2 import DESCRIPTOR
from service.grpc.interceptors import FAULTS
from service.monitoring.metrics import SECONDS
from service.rest.cloud import PROBES
from service.settings import Settings
from tests.monitoring.known_series import known_series
from tests.monitoring.rule_file import (
    UnitTest,
    alerts_of,
    run_unit_tests,
    shipped_groups,
    unit_tests,
)

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
GROUPS = shipped_groups(FOLDER)
ALERTS = alerts_of(GROUPS)
RULES = (FOLDER / "prometheus_rule.yaml").read_text(encoding="utf-8")
RUNBOOK = (FOLDER / "runbook.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
SPANS = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", RUNBOOK)]
SOURCES = "".join(
    path.read_text(encoding="utf-8")
    for path in sorted((FOLDER.parents[1] / "service").rglob("*.py"))
)
PARTS = ["Means", "Users feel", "Look", "Do", "False alarm"]
# Alerts whose value is always 0 or 1, so that their text needs no number.
SAME_VALUE = {
    "TipserveModelWithoutLane",
    "TipserveDown",
    "TipserveReplicaDown",
    "TipserveNoneReady",
    "TipserveReplicaNotReady",
}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_where_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"] == {"severity": alert["labels"]["severity"]}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert notes["runbook_url"] == f"deploy/monitoring/runbook.md#{name.lower()}"
    assert ("$value" in notes["description"]) == (name not in SAME_VALUE)


def test_the_runbook_has_a_whole_section_for_each_alert_and_no_other() -> None:
    assert SECTIONS.keys() == ALERTS.keys()
    for name, section in SECTIONS.items():
        assert re.findall(r"^\*\*([\w ]+)\.\*\* \S", section, re.MULTILINE) == PARTS, name


def test_the_runbook_names_series_settings_and_alerts_that_there_are() -> None:
    series = set(re.findall(r"(?<![\w/])(?:namespace_job\w*:)?tipserve[_:][\w:]+", RUNBOOK))
    known = known_series(GROUPS)
    families = {re.sub("_(total|bucket|count|sum)$", "", name) for name in known}
    assert {name for name in series if name not in known | families} == set()
    named = set(re.findall(r"`((?:max|watchdog|url|access|trace|drain)_\w+)`", RUNBOOK))
    assert named
    assert named <= Settings.model_fields.keys()
    linked = set(re.findall(r"\]\(#(\w+)\)", RUNBOOK))
    assert linked <= {name.lower() for name in ALERTS}


def test_the_runbooks_expressions_are_promql() -> None:
    asked = [span for span in SPANS if "tipserve_" in span and re.search(r"[(/{]", span)]
    assert len(asked) > 10
    for expression in asked:
        promql_parser.parse(expression)


def test_the_runbook_quotes_lines_that_the_log_has() -> None:
    quoted = {span for span in SPANS if re.fullmatch(r"(the|a|log) [\w' ;]+", span)}
    assert len(quoted) > 5
    assert {line for line in quoted if line not in SOURCES} == set()


def test_every_text_is_filled_in_when_the_alert_fires(tmp_path: Path) -> None:
    """A promtool test that expects no alert fails and quotes the alert's text."""
    seen: set[str] = set()
    tests = [expecting_nothing(test, seen) for test in unit_tests(FOLDER)]
    finished = run_unit_tests(tmp_path, [test for test in tests if test.content["tests"]], GROUPS)
    got = r'Labels:\{alertname="(\w+)",(.*)\n\s*Annotations:(\{.*\})'
    fired = re.findall(got, finished.stdout + finished.stderr)
    assert {name for name, _, _ in fired} == ALERTS.keys()
    for name, labels, text in fired:
        # A missing label would be replaced by an empty text.
        meant = set(re.findall(r"\$labels\.(\w+)", str(ALERTS[name]["annotations"])))
        assert meant <= set(re.findall(r'(\w+)="', labels)), name
        assert "<" not in text, "a value or a label is missing: " + text
        assert name in SAME_VALUE or re.search(r"\d", text), text


def expecting_nothing(test: UnitTest, seen: set[str]) -> UnitTest:
    """Return a moment at which each new alert fires, with the expectation of no alert."""
    cases = []
    for case, checks in zip(test.content["tests"], test.checks(), strict=True):
        fires = next((c for c in checks if c.is_firing and c.alert not in seen), None)
        if fires:
            seen.add(fires.alert)
            claim = {"eval_time": fires.moment, "alertname": fires.alert, "exp_alerts": []}
            cases.append({**case, "alert_rule_test": [claim]})
    return UnitTest(test.name, {**test.content, "tests": cases})


def test_faults_are_what_the_service_calls_its_own_but_for_what_it_cannot_do() -> None:
    codes = set(re.findall(r'code=~"([A-Z_|]+)"', RULES))
    assert codes == {"UNKNOWN|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|DATA_LOSS"}
    assert set(codes.pop().split("|")) == {code.name for code in FAULTS} - {"UNIMPLEMENTED"}


def test_probes_are_no_requests_and_everything_else_is() -> None:
    (routes,) = set(re.findall(r'method!~"(\[A-Z\][^"]+)"', RULES))
    (rpcs,) = set(re.findall(r'method!~"(\.\*/\([^"]+)"', RULES))
    assert all(re.fullmatch(routes, f"GET {path}") for path in PROBES)
    assert not re.fullmatch(routes, "POST /v1/images:embed")
    names = [m.name for service in DESCRIPTOR.services_by_name.values() for m in service.methods]
    probes = {
        name for name in names if re.fullmatch(rpcs, f"inference.GRPCInferenceService/{name}")
    }
    assert probes == {"ServerLive", "ServerReady", "ModelReady"}


def test_in_time_is_one_of_the_buckets() -> None:
    (bound,) = re.findall(r'request_duration_seconds_bucket\{le="([^"]+)"\}', RULES)
    assert float(bound) in SECONDS
    told = re.search(r"one of the service's buckets: ([\d. #\n]+)\.$", RULES, re.MULTILINE)
    assert told
    assert [float(word) for word in told[1].replace("#", "").split()] == [
        float(bound) for bound in SECONDS
    ]


def test_reasons_of_refusals_are_those_that_there_are() -> None:
    there_are = set(re.findall(r'(?:rejected\.labels|_rejected)\("(\w+)"', SOURCES))
    (reasons,) = re.findall(r'reason=~"([^"]+)"', RULES)
    assert set(reasons.split("|")) == there_are - {"unauthenticated", "too_large"}
