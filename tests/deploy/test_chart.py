"""The Helm chart renders the objects of kustomize."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import cross_references, kustomizations
from tests.deploy.kustomizations import DEPLOY, KUBERNETES
from tests.deploy.workloads import Manifest, called, of_kind
from tests.tools import run

CHART = DEPLOY / "chart"
# All parts: components, and the values that stand for them.
COMPONENTS = (
    "monitoring",
    "keda",
    "api-keys",
    "tls",
    "tracing",
    "gateway",
    "model-volume",
    "registry",
)
SWITCHES = ("monitoring", "keda", "apiKeys", "tls", "tracing", "gateway", "modelVolume")
VALUES: dict[str, Any] = {
    **{name: {"enabled": True} for name in SWITCHES},
    "settings": {"TIPSERVE_MODEL": "/models/current"},
    "image": {"repository": "registry.example.org/us/tipserve"},
    "imagePullSecrets": ["tipserve-registry"],
    "front": {"image": "registry.example.org/us/haproxy:3.0.11-alpine"},
}


def render(folder: Path, values: dict[str, Any], release: str = "tipserve") -> list[Manifest]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    linted = run("helm", "lint", "--strict", CHART, "--values", file)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    done = run("helm", "template", release, CHART, "--namespace=default", "--values", file)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one]


def comparable(documents: list[Manifest]) -> dict[str, Any]:
    """Documents by name, without the digest of settings and what only kustomize has."""
    text = re.sub(
        r"tipserve-(settings|front)-[a-z0-9]{10}", r"tipserve-\1", yaml.safe_dump(documents)
    )
    found = {called(one): one for one in yaml.load(text, yaml.CSafeLoader)}
    # A user's keys are in no values file, and a chart expects nothing of a cluster by annotations.
    found.pop("Secret/tipserve-api-keys", None)
    deployment = found["Deployment/tipserve"]
    notes = deployment["metadata"].pop("annotations", {})
    assert all(name.startswith("expects/") for name in notes)
    pod = deployment["spec"]["template"]["spec"]
    # Their order has no meaning.
    pod["volumes"].sort(key=lambda one: one["name"])
    for container in (*pod["initContainers"], *pod["containers"]):
        container["volumeMounts"].sort(key=lambda one: one["name"])
    return found


@pytest.mark.parametrize("has_all", [False, True])
def test_objects_are_those_of_kustomize(has_all: bool, tmp_path: Path) -> None:
    parts = [KUBERNETES / "components" / name for name in COMPONENTS if has_all]
    text = kustomizations.build_together(KUBERNETES / "overlays" / "cpu", parts)
    expected = comparable(list(yaml.load_all(text, yaml.CSafeLoader)))
    found = comparable(render(tmp_path, VALUES if has_all else {}))
    assert found.keys() == expected.keys()
    for name, document in expected.items():
        assert found[name] == document, name


def test_every_value_reaches_the_objects(tmp_path: Path) -> None:
    given: list[Any] = []

    def other(default: Any, name: str) -> Any:
        if isinstance(default, bool):
            return True
        if isinstance(default, dict) and default:
            return {key: other(value, f"{name}-{key.lower()}") for key, value in default.items()}
        given.append(7_000_000 + len(given) if isinstance(default, int) else f"other{name}")
        wrapped: dict[type, Any] = {dict: {"a": given[-1]}, list: [given[-1]]}
        return wrapped.get(type(default), given[-1])

    values = other(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")), "")
    values["tolerations"] = [{"key": values["tolerations"][0]}]
    # KEDA takes the place of `replicas`.
    documents = render(tmp_path, values) + render(tmp_path, values | {"keda": {}})
    assert [one for one in given if str(one) not in yaml.safe_dump(documents)] == []


def test_another_release_shares_nothing_with_the_first(tmp_path: Path) -> None:
    values = VALUES | {"image": {}, "apiKeys": {}, "tls": {}}
    first, second = (render(tmp_path, values, name) for name in ("a-tipserve", "tipserve-b"))
    names = [{called(one) for one in documents} for documents in (first, second)]
    assert not names[0] & names[1]
    assert cross_references.faults([*first, *second]) == []


def test_a_changed_setting_causes_a_rollout(tmp_path: Path) -> None:
    names = set()
    for level in ("INFO", "DEBUG"):
        documents = render(tmp_path, {"settings": {"TIPSERVE_LOG_LEVEL": level}})
        (settings,) = [
            one for one in of_kind(documents, "ConfigMap") if "TIPSERVE_MODEL" in one["data"]
        ]
        names.add(settings["metadata"]["name"])
        assert settings["data"]["TIPSERVE_MODEL"] == "bundled"
    assert len(names) == 2


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("keda.enabled=true", "keda.enabled needs monitoring.enabled"),
        ("tls.enabled=true,front.enabled=false", "tls.enabled needs front.enabled"),
    ],
)
def test_a_part_without_another_is_refused(values: str, told: str) -> None:
    ended = run("helm", "template", "tipserve", CHART, f"--set={values}")
    assert ended.returncode != 0
    assert told in ended.stderr
