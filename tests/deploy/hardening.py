"""Asks checkov how well pods are locked in: once for all sets of documents, as it starts slowly."""

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.kustomizations import DEPLOY
from tests.deploy.operator_pods import pods_within
from tests.deploy.strict_schemas import is_builtin
from tests.deploy.workloads import Manifest, Workload, of_kind, workloads
from tests.tools import find_tool

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
