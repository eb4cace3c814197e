"""Faults planted into rules, routes and dashboard are found by the checks of this folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.rule_file import RULES, UNIT_TESTS, checks_of, run_unit_tests
from tests.monitoring.test_dashboard import FILE, PANELS, unlike_their_titles
from tests.monitoring.test_standalone import ALERTMANAGER, faulty_inhibitions

SERVERS = '{job=~"(.+-)?tipserve(-.+)?",job!~".+-proxy"}'
REFUSED = 'code!~"401|403|UNAUTHENTICATED|PERMISSION_DENIED",'
NONE_READY = "namespace_job:tipserve_expected\n          for: "


@pytest.mark.parametrize(
    ("alert", "sound", "faulty"),
    [
        ("NoneReady", f"{NONE_READY}2m", f"{NONE_READY}20m"),
        ("NoneReady", f"(up{SERVERS} offset 15m)", f"(up{SERVERS} offset 15h)"),
        ("NoneReady", "tipserve_ready[6h]", "tipserve_ready[6m]"),
        ("NoneReady", ',job!~".+-proxy"', ""),
        ("Down", '(-.+)?"} offset 15m > 0', '(-.+)?"} offset 15h > 0'),
        ("ErrorBudgetBurnFast", REFUSED, ""),
        ("TrafficStopped", "and namespace_job:tipserve_requests:rate5m offset 1h", ""),
        ("TrafficStopped", "[1h:1m]) > 6", "[1h:1m]) > 60"),
        ("TrafficStopped", "[1h]) > 0.1)", "[1h]) > 0.5)"),
        ("ProxyConnectionsHigh", 'state=~"active|reading|writing"', 'state="active"'),
        ("ProxyFaultRatioHigh", 'code!~"4.."', 'code!="none"'),
        ("ProxyDown", "tipserve_proxy_up[6h])) > 0", "tipserve_proxy_up[6h])) >= 0"),
    ],
)
def test_promtool_finds_a_planted_fault(
    tmp_path: Path, alert: str, sound: str, faulty: str
) -> None:
    assert sound in RULES
    groups = yaml.safe_load(RULES.replace(sound, faulty))["spec"]["groups"]
    cases = [case for file in UNIT_TESTS.values() for case in file["tests"] if is_of(alert, case)]
    finished = run_unit_tests(tmp_path, {**UNIT_TESTS["replicas"], "tests": cases}, groups)
    assert finished.returncode != 0
    assert "got:" in finished.stdout + finished.stderr, "the rules are valid, an alert is not"


def is_of(alert: str, case: dict[str, Any]) -> bool:
    return {check.alert for check in checks_of(case)} == {f"Tipserve{alert}"}


@pytest.mark.parametrize("equal", ["[namespace]", "[job]", "[job, instance]"])
def test_an_alert_that_would_silence_another_deployment_is_found(equal: str) -> None:
    text = ALERTMANAGER.read_text(encoding="utf-8")
    planted = text.replace("equal: [namespace, job]", f"equal: {equal}", 1)
    assert planted != text
    assert len(faulty_inhibitions(yaml.safe_load(planted)["inhibit_rules"])) == 1


@pytest.mark.parametrize(
    ("sound", "faulty"),
    [
        ("sum by (caller, outcome)", "sum by (outcome)"),
        ("by (caller, outcome)", "by (outcome)"),
        ("sum by (reason) (rate(tipserve_abandoned", "sum by (model) (rate(tipserve_abandoned"),
    ],
)
@pytest.mark.parametrize("has_legend", [True, False])
def test_a_panel_without_its_label_is_found(sound: str, faulty: str, *, has_legend: bool) -> None:
    planted: list[dict[str, Any]] = json.loads(json.dumps(PANELS))
    for target in (target for panel in planted for target in panel["targets"]):
        if sound in target["expr"]:
            target["expr"] = target["expr"].replace(sound, faulty)
            if not has_legend:
                target["legendFormat"] = "{{outcome}}" if "outcome" in faulty else ""
    assert sound in FILE.read_text(encoding="utf-8")
    assert len(unlike_their_titles(planted)) == 1
