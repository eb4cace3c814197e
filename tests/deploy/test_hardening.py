"""Every kustomization, and what users will combine, against checkov."""

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import kustomizations
from tests.deploy.kustomizations import ALL, DEPLOY
from tests.deploy.strict_schemas import is_builtin
from tests.deploy.workloads import Manifest, Workload, of_kind, pods_within, workloads
from tests.tools import find_tool

# Asks checkov how well pods are locked in: once for all sets of documents, as it starts slowly.

LIMIT_S = 280.0
APART = "checked-together"


def faults(sets: dict[str, list[Manifest]], folder: Path) -> dict[str, list[str]]:
    """What checkov objects to, as `CKV_K8S_40 Deployment.default.tipserve`, for each set by name.

    Args:
        sets: Documents that are applied together.
        folder: An empty one, for files on the way.
    """
    names = {}
    for number, (name, documents) in enumerate(sets.items()):
        # checkov has no check of custom resources, and takes its time to pass over them.
        whole = [*filter(is_builtin, documents), *pods_within(documents)]
        text = yaml.safe_dump_all(_marked(whole, f"set-{number}"))
        (folder / f"{number}.yaml").write_text(text, encoding="utf-8")
        names[f"/{number}.yaml"] = name
    results = _run_checkov(folder)
    assert results["parsing_errors"] == [], results["parsing_errors"]
    seen = {check["file_path"] for check in results["passed_checks"]}
    unseen = {name for path, name in names.items() if path not in seen and workloads(sets[name])}
    assert not unseen, f"nothing was checked of {unseen}"
    found: dict[str, list[str]] = {name: [] for name in sets}
    for check in results["failed_checks"]:
        resource = re.sub(rf"\.{APART}-set-\d+$", "", check["resource"])
        found[names[check["file_path"]]].append(f"{check['check_id']} {resource}")
    return found


def _run_checkov(folder: Path) -> dict[str, Any]:
    command = [find_tool("checkov"), "-d", str(folder), "-o", "json"]
    ended = subprocess.run(
        [*command, "--config-file", str(DEPLOY / ".checkov.yaml")],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert ended.returncode in (0, 1), ended.stderr
    report = json.loads(ended.stdout)
    assert ended.returncode == bool(report["summary"]["failed"])
    results = report["results"]
    assert isinstance(results, dict)
    return results


def _marked(documents: list[Manifest], mark: str) -> list[Manifest]:
    """A copy in which policies mean no pods of other sets: to checkov all files are one cluster."""
    marked = copy.deepcopy(documents)
    for policy in of_kind(marked, "NetworkPolicy"):
        selector = policy["spec"].setdefault("podSelector", {})
        selector.setdefault("matchLabels", {})[APART] = mark
    pods = [*of_kind(marked, "Pod"), *map(_template, workloads(marked))]
    for pod in pods:
        pod.setdefault("metadata", {}).setdefault("labels", {})[APART] = mark
    return marked


def _template(workload: Workload) -> Manifest:
    spec = workload.document["spec"]
    owner = spec["jobTemplate"]["spec"] if workload.document["kind"] == "CronJob" else spec
    template: Manifest = owner.get("template", {})
    return template


# What single ones are allowed, beside deploy/.checkov.yaml: checks with the reason.
ALLOWED = {
    "bulk/rayjob.yaml": {
        "CKV_K8S_8": "the operator gives Ray's containers probes",
        "CKV_K8S_9": "the operator gives Ray's containers probes",
        "CKV_K8S_22": "what Ray writes beside /tmp on a cluster was not tried",
        "CKV2_K8S_6": "Ray's pods talk to one another over ports that they choose",
    },
    "training/trainjob": {"CKV_K8S_38": "the Trainer has no field to turn the token off"},
    "training/trainjob-dev": {"CKV_K8S_38": "the Trainer has no field to turn the token off"},
}


@pytest.fixture(scope="module")
def faults_by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What checkov says of each kustomization."""
    sets = {name: kustomizations.build(name) for name in ALL}
    return faults(sets, tmp_path_factory.mktemp("checkov"))


@pytest.mark.parametrize("name", ALL)
def test_checkov_is_content(faults_by_name: dict[str, list[str]], name: str) -> None:
    allowed = ALLOWED.get(name, {})
    assert [one for one in faults_by_name[name] if one.split()[0] not in allowed] == []


def test_nothing_is_allowed_that_needs_no_allowance(faults_by_name: dict[str, list[str]]) -> None:
    for name, allowed in ALLOWED.items():
        assert allowed.keys() == {one.split()[0] for one in faults_by_name[name]}
