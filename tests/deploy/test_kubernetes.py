"""What a cluster would find out too late: names and numbers of the manifests that must agree."""

import re
from typing import Any

import kubernetes_validate
import pytest

Manifest = dict[str, Any]

KUBERNETES_VERSIONS = ["1.30", "1.32", "1.37"]
PROBES = ["startupProbe", "readinessProbe", "livenessProbe"]
BYTES_PER_UNIT = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}


def quantity_bytes(text: str) -> int:
    """Bytes of a memory quantity such as `512Mi`."""
    match = re.fullmatch(r"(\d+)([KMG]i|[kMG])?", text)
    assert match, f"not a memory quantity: {text}"
    return int(match[1]) * BYTES_PER_UNIT[match[2] or ""]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_schemas_hold(manifests: list[Manifest], version: str) -> None:
    assert manifests
    for document in manifests:
        kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_is_noticed(deployment: Manifest) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**deployment, "spec": {**deployment["spec"], "replicaz": 2}}, "1.32", strict=True
        )


def test_selectors_match_the_pods(deployment: Manifest, kubernetes_service: Manifest) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert kubernetes_service["spec"]["selector"].items() <= labels.items()


def test_named_ports_exist(container: Manifest, kubernetes_service: Manifest) -> None:
    names = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in kubernetes_service["spec"]["ports"]} <= names
    assert {container[probe]["httpGet"]["port"] for probe in PROBES} <= names


def test_service_ports_equal_the_container_ports(
    container: Manifest, kubernetes_service: Manifest
) -> None:
    numbers = {port["name"]: port["containerPort"] for port in container["ports"]}
    for port in kubernetes_service["spec"]["ports"]:
        assert port["port"] == numbers[port["targetPort"]]


def test_metrics_are_not_offered_by_the_service(kubernetes_service: Manifest) -> None:
    assert {port["name"] for port in kubernetes_service["spec"]["ports"]} == {"http", "grpc"}


def test_memory_request_fits_the_limit(container: Manifest) -> None:
    resources = container["resources"]
    request = quantity_bytes(resources["requests"]["memory"])
    assert 0 < request <= quantity_bytes(resources["limits"]["memory"])


def test_the_container_is_hardened(pod: Manifest, container: Manifest) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_every_mount_has_its_volume(pod: Manifest, container: Manifest) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == volumes
    assert "/tmp" in mounts.values()
