"""Every kustomization, and what users will combine, against checkov."""

import pytest

from tests.deploy import hardening, kustomizations
from tests.deploy.kustomizations import ALL

# What single ones are allowed, beside deploy/.checkov.yaml: checks with the reason.
ALLOWED = {
    "bulk/rayjob.yaml": {
        "CKV_K8S_8": "the operator gives Ray's containers probes",
        "CKV_K8S_9": "the operator gives Ray's containers probes",
        "CKV_K8S_22": "what Ray writes beside /tmp on a cluster was not tried",
        "CKV2_K8S_6": "Ray's pods talk to one another over ports that they choose",
    },
    "training/trainjob": {"CKV_K8S_38": "the Trainer lets nobody turn the token off"},
    "training/trainjob-dev": {"CKV_K8S_38": "the Trainer lets nobody turn the token off"},
}


@pytest.fixture(scope="module")
def faults_by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What checkov says of each kustomization."""
    sets = {name: kustomizations.build(name) for name in ALL}
    return hardening.faults(sets, tmp_path_factory.mktemp("checkov"))


@pytest.mark.parametrize("name", ALL)
def test_checkov_is_content(faults_by_name: dict[str, list[str]], name: str) -> None:
    allowed = ALLOWED.get(name, {})
    assert [one for one in faults_by_name[name] if one.split()[0] not in allowed] == []


def test_nothing_is_allowed_that_needs_no_allowance(faults_by_name: dict[str, list[str]]) -> None:
    for name, allowed in ALLOWED.items():
        assert allowed.keys() == {one.split()[0] for one in faults_by_name[name]}
