"""Every overlay, as kubectl builds it, agrees with itself and with the server that it starts."""

import kubernetes_validate
import pytest

from tests.deploy.conftest import OVERLAYS
from tests.deploy.cross_references import faults
from tests.deploy.workloads import Manifest, of_kind

KUBERNETES_VERSIONS = ["1.30", "1.32", "1.37"]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_schemas_hold(manifests: list[Manifest], version: str) -> None:
    assert manifests
    for document in manifests:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_fits_together(overlays: dict[str, list[Manifest]], overlay: str) -> None:
    assert overlays[overlay]
    assert faults(overlays[overlay]) == []


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
