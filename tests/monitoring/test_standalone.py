"""The examples without the operator: both servers accept them, and alerts reach their receivers."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.rule_file import ALERTS, FOLDER, GROUPS, promtool
from tests.tools import run

ALERTMANAGER = FOLDER / "standalone" / "alertmanager.yml"


def test_prometheus_accepts_its_file_with_rules_made_by_its_command(tmp_path: Path) -> None:
    config = tmp_path / "standalone" / "prometheus.yml"
    shutil.copytree(FOLDER / "standalone", config.parent)
    shutil.copy(FOLDER / "prometheus_rule.yaml", tmp_path)
    assert promtool("check", "config", str(config)).returncode != 0
    (command,) = re.findall(r"^#\s+(sed .*)$", config.read_text(encoding="utf-8"), re.MULTILINE)
    run("sh", "-c", command, cwd=config.parent)
    checked = promtool("check", "config", str(config))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    num_rules = sum(len(group["rules"]) for group in GROUPS)
    assert f"{num_rules} rules found" in checked.stdout


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "on-call"), ("warning", "team")])
def test_alerts_are_routed_by_severity(severity: str, receiver: str) -> None:
    checked = run("amtool", "check-config", ALERTMANAGER)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    config = f"--config.file={ALERTMANAGER}"
    routed = run("amtool", "config", "routes", "test", config, f"severity={severity}")
    assert routed.stdout.strip() == receiver


def test_alerts_inhibit_others_of_the_same_deployment_only() -> None:
    rules = yaml.safe_load(ALERTMANAGER.read_text(encoding="utf-8"))["inhibit_rules"]
    assert rules
    assert not faulty_inhibitions(rules)


def test_the_proxy_has_a_job_of_its_own_and_the_pod_of_its_server() -> None:
    config = yaml.safe_load((FOLDER / "standalone" / "prometheus.yml").read_text(encoding="utf-8"))
    pods = {}
    for job in config["scrape_configs"]:
        (target,) = job["static_configs"][0]["targets"]
        (relabel,) = job["relabel_configs"]
        replacement = relabel.get("replacement", "${1}").replace("${1}", r"\1")
        pods[job["job_name"]] = re.sub(
            relabel.get("regex", "(.*)") + "$", replacement, target, count=1
        )
    assert pods == {"tipserve": "localhost:8002", "tipserve-proxy": "localhost:8002"}


def faulty_inhibitions(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rules that name an unknown alert, or by which one Deployment silences another."""

    def is_faulty(rule: dict[str, Any]) -> bool:
        matchers = [*rule["source_matchers"], *rule["target_matchers"]]
        named = {name for text in matchers for name in re.findall(r"Tipserve\w+", text)}
        return not named <= ALERTS.keys() or not {"namespace", "job"} <= set(rule["equal"])

    return [rule for rule in rules if is_faulty(rule)]
