"""The manifests' Deployment run by podman as one hardened pod."""

import copy
import secrets
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.containers.engine import Engine
from tests.containers.running import LIMIT_S, UNPRIVILEGED, Container, is_served
from tests.deploy import kustomizations
from tests.deploy.workloads import Manifest, of_kind, workloads

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROBES = ["startupProbe", "readinessProbe", "livenessProbe"]


@pytest.fixture(scope="module")
def documents() -> list[Manifest]:
    """Documents of one of two models side by side that podman can run."""
    built = kustomizations.build("kubernetes/overlays/side-by-side/photos")
    return of_kind(built, "ConfigMap", "Deployment")


@pytest.fixture(scope="module")
def server(documents: list[Manifest]) -> Manifest:
    """The one container of the overlay's Deployment."""
    (workload,) = workloads(documents)
    (found,) = workload.servers
    return found


@pytest.fixture(scope="module")
def pod(engine: Engine, image: str, documents: list[Manifest]) -> Iterator[Container]:
    """Run its pod on this machine, with the changes this needs.

    The local image is used and never pulled. There is one replica with its own name. Probes are
    removed, because podman would run curl in the container.
    """
    name = f"tipserve-test-{secrets.token_hex(4)}"
    played = copy.deepcopy(documents)
    (deployment,) = of_kind(played, "Deployment")
    deployment["metadata"]["name"] = name
    deployment["spec"]["replicas"] = 1
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    server |= {"image": image, "imagePullPolicy": "Never"}
    for probe in PROBES:
        del server[probe]
    text = yaml.safe_dump_all(played)
    try:
        engine.podman("kube", "play", "--network=podman", "-", given=text)
        yield Container(engine, f"{name}-pod-tipserve")
    finally:
        engine.podman("kube", "down", "--force", "-", check=False, given=text)
        engine.podman("pod", "rm", "--force", "--ignore", f"{name}-pod")


def pod_address(engine: Engine, container: Container) -> str:
    """Address of the container that holds the pod's network."""
    (holder,) = engine.podman(
        "pod", "inspect", "--format={{.InfraContainerID}}", container.name.removesuffix("-tipserve")
    ).stdout.split()
    return Container(engine, holder).address


def probe_url(server: Manifest, probe: str, address: str) -> str:
    """URL of the kubelet's probe."""
    asked = server[probe]["httpGet"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    return f"http://{address}:{ports[asked['port']]}{asked['path']}"


def test_its_own_probes_are_answered(engine: Engine, pod: Container, server: Manifest) -> None:
    address = pod_address(engine, pod)
    for probe in PROBES:
        pod.wait_for(partial(is_served, probe_url(server, probe, address)), probe)
    with grpc.insecure_channel(f"{address}:8001") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S).status == 1
    assert is_served(f"http://{address}:8002/metrics")


def test_it_is_hardened_as_the_manifest_says(pod: Container, server: Manifest) -> None:
    assert UNPRIVILEGED.items() <= pod.process_status().items()
    assert server["resources"]["limits"]["memory"] == "2Gi"
    assert pod.inspect("{{.HostConfig.Memory}}") == str(2 * 2**30)
    paths = ("/written", "/tmp/written", "/var/cache/tipserve/written")
    assert [pod.write(path) for path in paths] == ["EROFS", "written", "written"]


def test_its_variables_are_the_config_maps(pod: Container, documents: list[Manifest]) -> None:
    (settings,) = of_kind(documents, "ConfigMap")
    variables = pod.inspect("{{range .Config.Env}}{{println .}}{{end}}").split()
    assert {f"{key}={value}" for key, value in settings["data"].items()} <= set(variables)
