"""Texts of alerts and of the runbook fit the rules and the service."""

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from service.grpc.errors import CODE
from service.grpc.generated.open_inference_pb2 import DESCRIPTOR
from service.grpc.interceptor import FAULTS
from service.monitoring.metrics import CAPACITY, SECONDS
from service.rest.middleware import HEALTH_PATHS
from service.settings import Settings
from tests.deploy import kustomizations
from tests.deploy.workloads import of_kind
from tests.monitoring.prometheus_queries import known_series
from tests.monitoring.rule_file import (
    ALERTS,
    FOLDER,
    GROUPS,
    RULES,
    UNIT_TESTS,
    checks_of,
    run_unit_tests,
)

RUNBOOK = (FOLDER / "runbook.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
SPANS = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", RUNBOOK)]
SOURCES = "".join(
    path.read_text(encoding="utf-8")
    for path in sorted((FOLDER.parents[1] / "service").rglob("*.py"))
)
PARTS = ["Means", "Look", "Do"]


def test_alerts_have_a_severity_texts_and_a_section_of_the_runbook() -> None:
    for name, alert in ALERTS.items():
        assert alert["labels"] in ({"severity": "critical"}, {"severity": "warning"})
        notes = alert["annotations"]
        assert notes.keys() == {"summary", "description", "runbook_url"}
        assert notes["runbook_url"] == f"deploy/monitoring/runbook.md#{name.lower()}"
    assert SECTIONS.keys() == ALERTS.keys()
    for name, section in SECTIONS.items():
        assert re.findall(r"^- \*\*(\w+)\.\*\* \S", section, re.MULTILINE) == PARTS, name


def test_only_these_wake_someone() -> None:
    paging = {name for name, one in ALERTS.items() if one["labels"]["severity"] == "critical"}
    budgets = {f"Tipserve{name}BudgetBurnFast" for name in ("Error", "Latency", "Capacity")}
    broken = {"Down", "NoneReady", "ModelWithoutLane", "QueueStuck", "GpuError", "GpuMemoryErrors"}
    shut = {"TrafficStopped", "ProxyDown", "ProxyConnectionsHigh", "ProxyFaultRatioHigh"}
    assert paging == budgets | {f"Tipserve{name}" for name in broken | shut}


def test_links_are_urls_below_one_address() -> None:
    (rules,) = of_kind(kustomizations.build("monitoring"), "PrometheusRule")
    base = rules["metadata"]["annotations"]["tipserve/runbook"]
    every = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    links = {rule["annotations"]["runbook_url"] for rule in every if "alert" in rule}
    assert base.startswith("https://")
    assert links == {f"{base}#{name.lower()}" for name in ALERTS}


def test_the_runbook_names_series_settings_and_alerts_that_exist() -> None:
    series = set(re.findall(r"(?<![\w/])(?:namespace_job\w*:)?tipserve[_:][\w:]+", RUNBOOK))
    known = known_series(GROUPS)
    families = {re.sub("_(total|bucket|count|sum)$", "", name) for name in known}
    assert series <= known | families
    named = set(re.findall(r"`((?:max|watchdog|url|access|trace|drain)_\w+)`", RUNBOOK))
    assert named
    assert named <= Settings.model_fields.keys()
    asked = [span for span in SPANS if "tipserve_" in span and re.search(r"[(/{]", span)]
    assert len(asked) > 10
    for expression in asked:
        promql_parser.parse(expression)


@pytest.mark.parametrize("name", UNIT_TESTS)
def test_every_text_is_complete_when_the_alert_fires(name: str, tmp_path: Path) -> None:
    """A promtool test that expects no alert fails and quotes the alert's text."""
    content = UNIT_TESTS[name]
    cases = [case for case in map(expecting_nothing, content["tests"]) if case]
    if not cases:
        return
    finished = run_unit_tests(tmp_path, {**content, "tests": cases})
    got = r'Labels:\{alertname="(\w+)",(.*)\n\s*Annotations:(\{.*\})'
    fired = re.findall(got, finished.stdout + finished.stderr)
    expected = {check.alert for case in cases for check in checks_of(case) if check.is_firing}
    assert {alert for alert, _, _ in fired} == expected
    for alert, labels, text in fired:
        # A missing label would be replaced by an empty text.
        used = set(re.findall(r"\$labels\.(\w+)", str(ALERTS[alert]["annotations"])))
        assert used <= set(re.findall(r'(\w+)="', labels)), alert
        assert "<" not in text, "a value or a label is missing: " + text


def expecting_nothing(case: dict[str, Any]) -> dict[str, Any] | None:
    """The case with the expectation of no alert at the moment when it first fires."""
    fires = next((check for check in checks_of(case) if check.is_firing), None)
    if fires is None:
        return None
    claim = {"eval_time": fires.moment, "alertname": fires.alert, "exp_alerts": []}
    return {**case, "alert_rule_test": [claim]}


def test_fault_codes_are_those_of_the_service_without_unimplemented() -> None:
    (codes,) = set(re.findall(r'code=~"5..\|([A-Z_|]+)"', RULES))
    own = {CODE[error].name for error in FAULTS} - {"UNIMPLEMENTED"}
    assert set(codes.split("|")) == own | {"UNKNOWN", "DATA_LOSS"}, "two are of gRPC itself"


def test_only_probes_are_excluded_from_requests() -> None:
    (routes,) = (rpcs,) = set(re.findall(r'method!~"([^"]+)"', RULES))
    assert all(re.fullmatch(routes, f"GET {path}") for path in HEALTH_PATHS)
    assert not re.fullmatch(routes, "POST /v1/images:embed")
    names = [m.name for service in DESCRIPTOR.services_by_name.values() for m in service.methods]
    probes = {
        name for name in names if re.fullmatch(rpcs, f"inference.GRPCInferenceService/{name}")
    }
    assert probes == {"ServerLive", "ServerReady", "ModelReady"}


def test_the_latency_bound_is_a_bucket() -> None:
    (bound,) = re.findall(r'request_duration_seconds_bucket\{le="([^"]+)"\}', RULES)
    assert float(bound) in SECONDS


def test_reasons_of_refusals_are_those_of_the_service() -> None:
    (reasons,) = re.findall(r'reason=~"([^"]+)"', RULES)
    assert set(reasons.split("|")) == set(CAPACITY)
    used = [reason for reason in CAPACITY if SOURCES.count(f'"{reason}') > 1]
    assert used == list(CAPACITY), "each is counted somewhere"
