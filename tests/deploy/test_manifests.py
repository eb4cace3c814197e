"""Every kustomization and the usual combinations against schemas, checkov and our own checks."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy import cross_references, custom_resources, kustomizations, strict_schemas
from tests.deploy.kustomizations import ALL, DEPLOY
from tests.deploy.workloads import Manifest, of_kind, operator_pods, workloads
from tests.tools import find_tool

CHECKOV_LIMIT_S = 280.0
# Applied only as parts of others.
PIECES = {"kubernetes/base/network", "training/common"}
# Exceptions to checkov's checks besides deploy/.checkov.yaml.
ALLOWED = {
    "bulk/rayjob.yaml": {
        "CKV_K8S_8": "the operator gives Ray's containers probes",
        "CKV_K8S_9": "the operator gives Ray's containers probes",
        "CKV_K8S_22": "which files Ray writes besides /tmp was never tested on a cluster",
    },
    "training/trainjob": {"CKV_K8S_38": "the Trainer has no field to turn the token off"},
    "training/trainjob-dev": {"CKV_K8S_38": "the Trainer has no field to turn the token off"},
}


@pytest.mark.parametrize("name", ALL)
def test_builtin_kinds_fit_the_strict_schemas(name: str) -> None:
    documents = kustomizations.build(name)
    assert documents
    assert strict_schemas.faults(documents) == []


def test_custom_resources_fit_their_descriptions() -> None:
    found = custom_resources.faults({name: kustomizations.build(name) for name in ALL})
    assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.parametrize("name", [name for name in ALL if name not in PIECES])
def test_names_and_numbers_agree(name: str) -> None:
    assert cross_references.faults(kustomizations.build(name)) == []


def test_metrics_are_not_offered_to_callers(manifests: list[Manifest]) -> None:
    ports = {p["name"] for one in of_kind(manifests, "Service") for p in one["spec"]["ports"]}
    assert ports == {"http", "grpc"}


def test_checkov_finds_only_the_exceptions(tmp_path: Path) -> None:
    names = {}
    for number, name in enumerate(ALL):
        documents = kustomizations.build(name)
        # checkov has no checks of custom resources.
        known = [*filter(strict_schemas.is_builtin, documents), *operator_pods(documents)]
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump_all(known), encoding="utf-8")
        names[f"/{number}.yaml"] = name
    command = [find_tool("checkov"), "-d", str(tmp_path), "-o", "json"]
    command += ["--config-file", str(DEPLOY / ".checkov.yaml")]
    ended = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=CHECKOV_LIMIT_S
    )
    assert ended.returncode in (0, 1), ended.stderr
    results = json.loads(ended.stdout)["results"]
    assert results["parsing_errors"] == []
    checked = {names[check["file_path"]] for check in results["passed_checks"]}
    assert checked >= {name for name in ALL if workloads(kustomizations.build(name))}
    found: dict[str, set[str]] = {}
    for check in results["failed_checks"]:
        # All files are one cluster to checkov, so `cross_references.policies` checks this one.
        if check["check_id"] != "CKV2_K8S_6":
            found.setdefault(names[check["file_path"]], set()).add(check["check_id"])
    assert found == {name: set(reasons) for name, reasons in ALLOWED.items()}
