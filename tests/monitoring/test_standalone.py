"""The examples without the operator: both servers accept them, and alerts reach their receivers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.monitoring.rule_file import alerts_of, promtool, shipped_groups
from tests.tools import find_tool

LIMIT_S = 60.0
FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
ALERTMANAGER = FOLDER / "standalone" / "alertmanager.yml"


def amtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [find_tool("amtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_prometheus_takes_its_file_with_the_rules_that_it_says_how_to_make(tmp_path: Path) -> None:
    config = tmp_path / "standalone" / "prometheus.yml"
    shutil.copytree(FOLDER / "standalone", config.parent)
    shutil.copy(FOLDER / "prometheus_rule.yaml", tmp_path)
    missing = promtool("check", "config", str(config))
    assert missing.returncode != 0
    (command,) = re.findall(r"^#\s+(sed .*)$", config.read_text(encoding="utf-8"), re.MULTILINE)
    subprocess.run(["sh", "-c", command], cwd=config.parent, check=True, timeout=LIMIT_S)
    checked = promtool("check", "config", str(config))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    num_rules = sum(len(group["rules"]) for group in shipped_groups(FOLDER))
    assert f"{num_rules} rules found" in checked.stdout


def test_alertmanager_takes_its_file() -> None:
    checked = amtool("check-config", str(ALERTMANAGER))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "on-call"), ("warning", "team")])
def test_alerts_go_by_their_severity(severity: str, receiver: str) -> None:
    config = f"--config.file={ALERTMANAGER}"
    routed = amtool("config", "routes", "test", config, f"severity={severity}")
    assert routed.stdout.strip() == receiver


def test_only_alerts_that_there_are_silence_others() -> None:
    rules = yaml.safe_load(ALERTMANAGER.read_text(encoding="utf-8"))["inhibit_rules"]
    for rule in rules:
        matchers = [*rule["source_matchers"], *rule["target_matchers"]]
        named = {name for text in matchers for name in re.findall(r"Tipserve\w+", text)}
        assert named <= alerts_of(shipped_groups(FOLDER)).keys()
