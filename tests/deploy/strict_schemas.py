"""Kubernetes' own schemas, read strictly: unknown fields are faults."""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.deploy.workloads import Manifest, called, operator_pods

# Two widespread versions, and the newest that the package has.
VERSIONS = ("1.30", "1.32", kubernetes_validate.latest_version())
# The groups that Kubernetes itself serves; other kinds are custom resources.
GROUPS = (
    "",
    "apps",
    "autoscaling",
    "batch",
    "policy",
    "networking.k8s.io",
    "rbac.authorization.k8s.io",
)
# Prefixes of KServe's names for types of Kubernetes, and of their definitions.
PREFIXES = {
    "K8sIoApiAppsV1": ("io.k8s.api.apps.v1.",),
    "K8sIoApiAutoscalingV2": ("io.k8s.api.autoscaling.v2.",),
    "V1": ("io.k8s.api.core.v1.", "io.k8s.apimachinery.pkg.apis.meta.v1."),
    "Resource": ("io.k8s.apimachinery.pkg.api.resource.",),
}


def is_builtin(document: Manifest) -> bool:
    """Whether Kubernetes serves this kind without an operator."""
    group, _, version = document["apiVersion"].rpartition("/")
    return bool(version) and group in GROUPS


def faults(documents: list[Manifest], versions: Sequence[str] = VERSIONS) -> list[str]:
    """Faults of built-in kinds, and of pods within custom resources, by any version's schemas."""
    return [
        f"{called(document)} in {version}: {fault}"
        for document in [*filter(is_builtin, documents), *operator_pods(documents)]
        for version in versions
        if (fault := _fault(json.dumps(document), version))
    ]


@functools.cache
def _fault(document: str, version: str) -> str:
    """The first fault of a document, given as JSON: cached, since most documents recur."""
    try:
        kubernetes_validate.validate(json.loads(document), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return str(error.message)
    return ""


def faults_of_type(type_name: str, value: Any) -> list[tuple[str, str]] | None:
    """Fields and messages for a value of a type such as V1Container; None for an unknown type."""
    definition = _definition(type_name)
    if definition is None:
        return None
    address, registry = definition
    validator = Draft202012Validator({"$ref": address}, registry=registry)
    return [
        ("".join(f"/{part}" for part in error.absolute_path), error.message)
        for error in validator.iter_errors(value)
    ]


@functools.cache
def _definitions() -> dict[str, Any]:
    newest = kubernetes_validate.utils.all_versions()[-1]
    path = f"kubernetes-json-schema/v{newest}-local-strict/_definitions.json"
    contents = schema_contents(path, newest)
    assert isinstance(contents, dict)
    return contents


def _definition(type_name: str) -> tuple[str, Any] | None:
    contents = _definitions()
    match = re.fullmatch(rf"({'|'.join(PREFIXES)})(\w+)", type_name)
    if not match:
        return None
    for prefix in PREFIXES[match[1]]:
        name = f"{prefix}{match[2]}"
        if name in contents["$defs"]:
            registry: Any = Resource.from_contents(contents) @ Registry()
            return f"{contents['$id']}#/$defs/{name}", registry
    return None
