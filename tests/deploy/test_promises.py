"""Every kustomization keeps what is promised of all manifests."""

import base64
import functools
import re
import tomllib
from collections.abc import Iterator

import pytest

from tests.deploy import kustomizations
from tests.deploy.kustomizations import DEPLOY
from tests.deploy.workloads import Manifest, Workload, called, of_kind, pods_within, workloads

# Says where manifests break what is promised of all of them; no schema or scanner knows that.

# Suffixes of our images: what each is built with stands in deploy/README.md.
VARIANTS = ("", "-gpu", "-convert", "-train", "-bulk", "-ray")
HOST_FIELDS = ("hostIPC", "hostNetwork", "hostPID")
SECRET_NAME = re.compile(r"(KEY|KEYS|TOKEN|PASSWORD|SECRET|CREDENTIALS)$", re.IGNORECASE)


def faults(documents: list[Manifest]) -> list[str]:
    """What breaks a promise, as `Kind/name: what`."""
    return [fault for check in CHECKS for fault in check(documents)]


@functools.cache
def version() -> str:
    """Of the project."""
    text = (DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def pods(documents: list[Manifest]) -> list[Workload]:
    """Everything that becomes pods, by Kubernetes itself or by an operator."""
    by_operators = pods_within(documents)
    jobs = workloads(by_operators)
    return [
        *workloads(documents),
        *jobs,
        *(Workload(pod, pod["spec"]) for pod in of_kind(by_operators, "Pod")),
    ]


def image_faults(documents: list[Manifest]) -> Iterator[str]:
    """Images are ours, of one version, which labels say too."""
    known = {f"tipserve:{version()}{variant}" for variant in VARIANTS}
    for workload in pods(documents):
        for container in workload.containers:
            if container.get("image") not in known:
                yield f"{workload}: {container['name']} has the image {container.get('image')}"
    label = "app.kubernetes.io/version"
    for document in documents:
        said = document["metadata"].get("labels", {}).get(label, version())
        if said != version():
            yield f"{called(document)}: {label} is {said}"


def resource_faults(documents: list[Manifest]) -> Iterator[str]:
    """Containers say what they take: a share of CPUs and memory, and a limit of memory."""
    for workload in pods(documents):
        for container in workload.containers:
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            where = f"{workload}: {container['name']}"
            for name in ("cpu", "memory"):
                if name not in requests:
                    yield f"{where} requests no {name}"
            if "memory" not in limits:
                yield f"{where} has no limit of memory"
            if "cpu" in limits:
                yield f"{where} has a limit of CPUs, which throttles"


def host_faults(documents: list[Manifest]) -> Iterator[str]:
    """No pod reaches into its node."""
    for workload in pods(documents):
        for field in HOST_FIELDS:
            if workload.pod.get(field):
                yield f"{workload}: {field}"
        for volume in workload.pod.get("volumes", []):
            if "hostPath" in volume:
                yield f"{workload}: the volume {volume['name']} is a path of the node"
        for container in workload.containers:
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{workload}: {container['name']} takes a port of the node"


def secret_faults(documents: list[Manifest]) -> Iterator[str]:
    """No secret is written down: Secrets hold comments at most, variables paths at most."""
    for secret in of_kind(documents, "Secret"):
        texts = {name: base64.b64decode(text) for name, text in secret.get("data", {}).items()}
        texts |= {name: text.encode() for name, text in secret.get("stringData", {}).items()}
        for name, content in texts.items():
            lines = content.decode("utf-8", "replace").splitlines()
            if any(line.strip() and not line.startswith("#") for line in lines):
                yield f"{called(secret)}: {name} holds a value"
    for settings in of_kind(documents, "ConfigMap"):
        for name, value in settings.get("data", {}).items():
            if SECRET_NAME.search(name) and not value.startswith("/"):
                yield f"{called(settings)}: {name} is no place for a secret"
    for workload in pods(documents):
        for container in workload.containers:
            for variable in container.get("env", []):
                value = variable.get("value", "/")
                if SECRET_NAME.search(variable["name"]) and not value.startswith("/"):
                    yield f"{workload}: {container['name']} has {variable['name']} as plain text"


CHECKS = (image_faults, resource_faults, host_faults, secret_faults)


@pytest.mark.parametrize("name", kustomizations.ALL)
def test_promises_are_kept(name: str) -> None:
    assert faults(kustomizations.build(name)) == []
