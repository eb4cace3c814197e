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
from tests.deploy.kustomizations import KUBERNETES
from tests.deploy.workloads import Manifest, Workload, called, of_kind, workloads
from tests.monitoring.prometheus_queries import known_series, metric_names


def build(*names: str) -> list[Manifest]:
    return kustomizations.build(" ".join(names))


def server(documents: list[Manifest]) -> Workload:
    (found,) = [one for one in workloads(documents) if one.servers]
    return found


def settings(documents: list[Manifest]) -> dict[str, str]:
    (found,) = [
        one["data"]
        for one in of_kind(documents, "ConfigMap")
        if one["metadata"]["name"].startswith("tipserve-settings-")
    ]
    return dict(found)


def test_every_component_is_in_a_combination() -> None:
    there = {path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml")}
    assert there == {name for names in kustomizations.COMBINATIONS for name in names.split()[1:]}


@pytest.mark.parametrize("order", [("hpa", "keda"), ("keda", "hpa")])
def test_two_autoscalers_cannot_be_built(order: tuple[str, str]) -> None:
    with pytest.raises(AssertionError, match="replicas"):
        build("cpu", *order)


def test_the_hpa_asks_for_metrics_that_the_adapter_has_from_series_that_exist() -> None:
    text = (KUBERNETES / "components/hpa/prometheus_adapter.yaml").read_text(encoding="utf-8")
    rules = yaml.safe_load(text)["rules"]["external"]
    (hpa,) = of_kind(build("cpu", "hpa"), "HorizontalPodAutoscaler")
    asked = {metric["external"]["metric"]["name"] for metric in hpa["spec"]["metrics"]}
    assert asked == {rule["name"]["as"] for rule in rules}
    for rule in rules:
        query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'job="tipserve"')
        assert metric_names(query) | metric_names(rule["seriesQuery"]) <= known_series([])


def test_a_changed_setting_causes_a_rollout() -> None:
    before, after = (server(build("cpu", *names)) for names in ((), ("model-volume",)))
    names = [one.servers[0]["envFrom"][0]["configMapRef"]["name"] for one in (before, after)]
    assert names[0] != names[1]


def test_settings_of_components_are_merged() -> None:
    both = settings(build("cpu", "tracing", "api-keys"))
    assert {"TIPSERVE_MODEL", "TIPSERVE_OTLP_ENDPOINT", "TIPSERVE_API_KEYS_FILE"} <= both.keys()


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


def test_new_keys_cause_no_rollout() -> None:
    (secret,) = of_kind(build("cpu", "api-keys"), "Secret")
    assert secret["metadata"]["name"] == "tipserve-api-keys"


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
    before, after = (
        kustomizations.build_together(KUBERNETES / "overlays" / "production", folders)
        for folders in ([], [tmp_path])
    )
    (none,), (one,) = (of_kind(yaml.safe_load_all(text), "Secret") for text in (before, after))
    assert none["metadata"] == one["metadata"]
    with pytest.raises(ValueError, match="holds no API key"):
        read_keys(tmp_path, none)
    read_keys(tmp_path, one).enter(None, "a-key-of-my-own-0001")


def read_keys(folder: Path, secret: Manifest) -> ApiKeys:
    """Read a Secret's file as the server does."""
    file = folder / "mounted"
    file.write_bytes(base64.b64decode(secret["data"]["api_keys"]))
    return ApiKeys(Metrics(), file=file)


def test_a_users_setting_overrides_those_of_components() -> None:
    documents = kustomizations.build("kubernetes/overlays/production")
    chosen = settings(documents)
    assert chosen["TIPSERVE_MODEL"] != settings(build("cpu", "model-volume"))["TIPSERVE_MODEL"]
    assert re.fullmatch(r"/models/" + VERSION.pattern, chosen["TIPSERVE_MODEL"])


@pytest.mark.parametrize(("component", "port"), [("tracing", 4318), ("released-model", 443)])
def test_only_components_that_call_out_open_a_port(component: str, port: int) -> None:
    def egress(*components: str) -> set[int]:
        (policy,) = of_kind(build("cpu", *components), "NetworkPolicy")
        return {p["port"] for rule in policy["spec"]["egress"] for p in rule["ports"]}

    assert egress() == {53, 5353}
    assert egress(component) == {53, 5353, port}


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        # Publishing and each server verify a package; a third time in between adds nothing.
        (("cpu", "model-volume"), []),
        (("cpu", "released-model"), ["prepare-model"]),
        (("gpu",), ["build-engines"]),
        (("gpu", "model-volume"), ["build-engines"]),
        (("gpu-released",), ["prepare-model", "build-engines"]),
    ],
    ids=str,
)
def test_init_containers_run_in_order(names: tuple[str, ...], steps: list[str]) -> None:
    documents = build(*names)
    containers = server(documents).pod.get("initContainers", [])
    assert [container["name"] for container in containers] == steps
    for container in containers:
        # Each handles the model that is then served, in the server's cache.
        for variable in container["env"]:
            if variable["name"].startswith("TIPSERVE_"):
                assert variable["valueFrom"]["configMapKeyRef"]["key"] == variable["name"]
        assert "TIPSERVE_MODEL" in container["command"][-1]


@pytest.mark.parametrize("names", [("cpu", "released-model"), ("gpu-released",)], ids=str)
def test_the_prepared_precisions_are_those_of_the_server(names: tuple[str, ...]) -> None:
    documents = build(*names)
    wanted = settings(documents).get("TIPSERVE_CONVERT_PRECISIONS", "")
    for container in server(documents).pod["initContainers"]:
        precisions = re.findall(r"--precision=(\w+)", " ".join(container["command"]))
        assert precisions == [name for name in wanted.split(",") if name]
