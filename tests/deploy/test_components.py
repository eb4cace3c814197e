"""Components on top of overlays, as deploy/README.md describes them."""

import re

import pytest
import yaml

from tests.deploy import kustomizations
from tests.deploy.kustomizations import DEPLOY, KUBERNETES, build
from tests.deploy.workloads import Manifest, of_kind, workloads
from tests.processes.front import CONFIGURATION


def server(documents: list[Manifest]) -> Manifest:
    (found,) = [one.pod for one in workloads(documents) if one.servers]
    return found


def settings(documents: list[Manifest]) -> dict[str, str]:
    found = {one["metadata"]["name"]: one["data"] for one in of_kind(documents, "ConfigMap")}
    return dict(found[server(documents)["containers"][0]["envFrom"][0]["configMapRef"]["name"]])


def test_every_component_is_in_a_combination() -> None:
    there = {path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml")}
    combined = {name for names in kustomizations.COMBINATIONS for name in names.split()[1:]}
    assert there == combined | {"front"}, "which overlays have"


def test_strangers_come_through_the_front_and_leave_it_before_the_server_drains() -> None:
    for overlay in ("cpu", "gpu", "production"):
        pod = server(documents := build(f"kubernetes/overlays/{overlay}"))
        front, chosen = pod["initContainers"][-1], settings(documents)
        assert (front["name"], front["restartPolicy"]) == ("front", "Always")
        defaults = dict(re.findall(r"\$\{PROXY_(\w+)-([\d.:]+)\}", CONFIGURATION.read_text()))
        for protocol, variable in (("http", "REST"), ("grpc", "GRPC")):
            where = f"{chosen['TIPSERVE_HOST']}:{chosen[f'TIPSERVE_{protocol.upper()}_PORT']}"
            assert defaults[f"{variable}_SERVER"] == where
            ports = {port["name"]: port["containerPort"] for port in front["ports"]}
            assert defaults[variable] == f":{ports[protocol]}"
        (told,) = re.findall(
            r"^sleep (\d+); kill -USR1 1$", front["lifecycle"]["preStop"]["exec"]["command"][-1]
        )
        assert 0 < int(told) < pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_settings_of_components_are_merged_and_cause_a_rollout_but_keys_do_not() -> None:
    both = build("cpu tracing api-keys")
    assert {"TIPSERVE_MODEL", "TIPSERVE_OTLP_ENDPOINT", "TIPSERVE_API_KEYS_FILE"} <= settings(
        both
    ).keys()
    names = [server(documents)["containers"][0]["envFrom"] for documents in (both, build("cpu"))]
    assert names[0] != names[1]
    (secret,) = of_kind(both, "Secret")
    assert secret["metadata"]["name"] == "tipserve-api-keys"


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        # Publishing and each server verify a package; a third time in between adds nothing.
        ("cpu model-volume", ["front"]),
        ("cpu released-model", ["prepare-model", "front"]),
        ("gpu", ["build-engines", "front"]),
        ("gpu model-volume", ["build-engines", "front"]),
        ("gpu-released", ["prepare-model", "build-engines", "front"]),
    ],
)
def test_init_containers_run_in_order_and_do_what_the_server_needs(
    names: str, steps: list[str]
) -> None:
    documents = build(names)
    containers = server(documents).get("initContainers", [])
    assert [container["name"] for container in containers] == steps
    precisions = settings(documents).get("TIPSERVE_CONVERT_PRECISIONS", "")
    for container in containers[:-1]:
        # Each handles the model that is then served, in the server's cache and precisions.
        for variable in container["env"]:
            if variable["name"].startswith("TIPSERVE_"):
                assert variable["valueFrom"]["configMapKeyRef"]["key"] == variable["name"]
        assert "TIPSERVE_MODEL" in container["command"][-1]
        given = re.findall(r"--precision=(\w+)", " ".join(container["command"]))
        assert given == [name for name in precisions.split(",") if name]


def test_compose_is_the_pod_on_one_machine() -> None:
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    documents = build("cpu")
    front, chosen = server(documents)["initContainers"][-1], settings(documents)
    proxy, own = composed["proxy"], composed["tipserve"]["environment"]
    assert (proxy["image"], proxy["command"]) == (front["image"], front["command"])
    assert own.items() <= chosen.items()
    assert chosen.keys() - own.keys() == {"TIPSERVE_MODEL", "TIPSERVE_CACHE"}
    published = [f"{port['containerPort']}:{port['containerPort']}" for port in front["ports"]]
    assert proxy["ports"] == published
    assert "ports" not in composed["tipserve"]
    # It serves the bundled model, which runs without OpenVINO.
    assert composed["tipserve"]["build"]["args"] == {"EXTRA": "cpu-onnx,otel"}
    assert composed["tipserve"]["image"].endswith("-onnx")
