"""What kubectl builds of every folder agrees with itself and with the server that it starts."""

import pytest

from tests.deploy import kustomizations
from tests.deploy.cross_references import faults
from tests.deploy.workloads import Manifest, of_kind

# Applied only as parts of others.
PIECES = {"kubernetes/base/network", "training/common"}


@pytest.mark.parametrize("name", [one for one in kustomizations.NAMES if one not in PIECES])
def test_everything_fits_together(name: str) -> None:
    documents = kustomizations.build(name)
    assert documents
    assert faults(documents) == []


def test_every_overlay_is_known(overlays: dict[str, list[Manifest]]) -> None:
    folder = kustomizations.DEPLOY / "kubernetes" / "overlays"
    assert {path.name for path in folder.iterdir()} == overlays.keys()


def test_metrics_are_not_offered_to_callers(manifests: list[Manifest]) -> None:
    ports = {p["name"] for one in of_kind(manifests, "Service") for p in one["spec"]["ports"]}
    assert ports == {"http", "grpc"}


def test_the_container_is_hardened(pod: Manifest, container: Manifest) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
