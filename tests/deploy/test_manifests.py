"""Everything in `deploy/` against schemas, checkov and our own checks."""

import json
from pathlib import Path

import pytest
import yaml

from tests.deploy import cross_references, kustomizations, schemas
from tests.deploy.kustomizations import ALL, DEPLOY
from tests.deploy.workloads import operator_pods, workloads
from tests.tools import run

CHECKOV_LIMIT_S = 280.0
# Applied only as parts of others.
PIECES = {"training/common"}
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
def test_builtin_kinds_fit_the_schemas(name: str) -> None:
    documents = kustomizations.build(name)
    assert documents
    assert [*schemas.faults_of_builtin(documents)] == []


def test_custom_resources_fit_their_descriptions(tmp_path: Path) -> None:
    documents = (one for name in ALL for one in kustomizations.build(name))
    assert [*schemas.faults_of_custom(documents, tmp_path)] == []


@pytest.mark.parametrize("name", [name for name in ALL if name not in PIECES])
def test_names_and_numbers_agree(name: str) -> None:
    assert cross_references.faults(kustomizations.build(name)) == []


def test_checkov_finds_only_the_exceptions(tmp_path: Path) -> None:
    names = {}
    for number, name in enumerate(ALL):
        documents = kustomizations.build(name)
        # checkov has no checks of custom resources.
        known = [*filter(schemas.is_builtin, documents), *operator_pods(documents)]
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump_all(known), encoding="utf-8")
        names[f"/{number}.yaml"] = name
    command = ("checkov", "-d", tmp_path, "-o", "json", "--config-file", DEPLOY / ".checkov.yaml")
    ended = run(*command, timeout_s=CHECKOV_LIMIT_S)
    assert ended.returncode in (0, 1), ended.stderr
    results = json.loads(ended.stdout)["results"]
    assert results["parsing_errors"] == []
    checked = {names[check["file_path"]] for check in results["passed_checks"]}
    assert checked >= {name for name in ALL if workloads(kustomizations.build(name))}
    found: dict[str, set[str]] = {}
    for check in results["failed_checks"]:
        # All files are one cluster to checkov, so `others_selectors` checks this one.
        if check["check_id"] != "CKV2_K8S_6":
            found.setdefault(names[check["file_path"]], set()).add(check["check_id"])
    assert found == {name: set(reasons) for name, reasons in ALLOWED.items()}
