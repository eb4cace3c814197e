"""Components on top of overlays, as deploy/README.md describes them."""

import base64
import re
from pathlib import Path

import pytest
import yaml

from model.publication import VERSION
from service.monitoring.metrics import Metrics
from service.safety.api_keys import ApiKeys
from tests.deploy import cross_references, kustomizations
from tests.deploy.cross_references import selected
from tests.deploy.kustomizations import DEPLOY, KUBERNETES, build
from tests.deploy.workloads import Manifest, called, of_kind, workloads
from tests.monitoring.prometheus_queries import known_series, metric_names
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


def test_the_hpa_asks_for_metrics_that_the_adapter_has_from_series_that_exist() -> None:
    text = (KUBERNETES / "components/hpa/prometheus_adapter.yaml").read_text(encoding="utf-8")
    rules = yaml.safe_load(text)["rules"]["external"]
    (hpa,) = of_kind(build("cpu hpa"), "HorizontalPodAutoscaler")
    asked = {metric["external"]["metric"]["name"] for metric in hpa["spec"]["metrics"]}
    assert asked == {rule["name"]["as"] for rule in rules}
    for rule in rules:
        query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'job="tipserve"')
        assert metric_names(query) | metric_names(rule["seriesQuery"]) <= known_series([])


def test_settings_of_components_are_merged_and_cause_a_rollout_but_keys_do_not() -> None:
    both = build("cpu tracing api-keys")
    assert {"TIPSERVE_MODEL", "TIPSERVE_OTLP_ENDPOINT", "TIPSERVE_API_KEYS_FILE"} <= settings(
        both
    ).keys()
    names = [server(documents)["containers"][0]["envFrom"] for documents in (both, build("cpu"))]
    assert names[0] != names[1]
    (secret,) = of_kind(both, "Secret")
    assert secret["metadata"]["name"] == "tipserve-api-keys"


def test_deployments_side_by_side_share_no_pods_but_of_a_canary() -> None:
    documents = build("kubernetes/overlays/side-by-side")
    kinds = ("Service", "PodDisruptionBudget", "NetworkPolicy")
    chosen = {
        called(one): {str(pods) for pods in selected(one, workloads(documents))}
        for one in of_kind(documents, *kinds)
    }
    for name in ("photos-canary", "shapes"):
        own = {f"Deployment/{name}-tipserve"}
        assert [v for k, v in chosen.items() if f"/{name}-tipserve" in k and v != own] == []
    both = {"Deployment/photos-tipserve", "Deployment/photos-canary-tipserve"}
    assert chosen["Service/photos-tipserve"] == chosen["Service/photos-tipserve-headless"] == both
    (scaled,) = of_kind(documents, "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"] == "shapes-tipserve"
    assert cross_references.faults(documents) == []


def test_a_users_component_replaces_the_empty_keys(tmp_path: Path) -> None:
    (tmp_path / "api_keys").write_text("a-key-of-my-own-0001\n", encoding="utf-8")
    mine = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "secretGenerator": [
            {"name": "tipserve-api-keys", "behavior": "replace", "files": ["api_keys"]}
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
    file, secrets = tmp_path / "mounted", []
    for folders in ([], [tmp_path]):
        text = kustomizations.build_together(KUBERNETES / "overlays" / "production", folders)
        secrets += of_kind(yaml.safe_load_all(text), "Secret")
    none, one = (base64.b64decode(secret["data"]["api_keys"]) for secret in secrets)
    assert secrets[0]["metadata"] == secrets[1]["metadata"]
    file.write_bytes(none)
    with pytest.raises(ValueError, match="holds no API key"):
        ApiKeys(Metrics(), file=file)
    file.write_bytes(one)
    ApiKeys(Metrics(), file=file).enter(None, "a-key-of-my-own-0001")


def test_a_users_setting_overrides_those_of_components() -> None:
    chosen = settings(build("kubernetes/overlays/production"))["TIPSERVE_MODEL"]
    assert chosen != settings(build("cpu model-volume"))["TIPSERVE_MODEL"]
    assert re.fullmatch(r"/models/" + VERSION.pattern, chosen)


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


def test_the_collector_listens_where_pods_send() -> None:
    collector = yaml.safe_load((DEPLOY / "tracing/collector.yaml").read_text(encoding="utf-8"))
    port = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].split(":")[1]
    assert settings(build("cpu tracing"))["TIPSERVE_OTLP_ENDPOINT"].endswith(f".svc:{port}")


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
