"""Says where documents break Kubernetes' own schemas, read strictly: unknown fields are faults."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

Manifest = dict[str, Any]

# Two that are widely run, and the newest that the package knows.
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
# How others name the types of Kubernetes, and where its schemas have them.
PREFIXES = {
    "K8sIoApiAppsV1": ("io.k8s.api.apps.v1.",),
    "K8sIoApiAutoscalingV2": ("io.k8s.api.autoscaling.v2.",),
    "V1": ("io.k8s.api.core.v1.", "io.k8s.apimachinery.pkg.apis.meta.v1."),
    "Resource": ("io.k8s.apimachinery.pkg.api.resource.",),
}
# What of a ServingRuntime becomes part of its pods.
KEPT_OF_RUNTIMES = (
    "affinity",
    "containers",
    "imagePullSecrets",
    "nodeSelector",
    "tolerations",
    "volumes",
)


def is_builtin(document: Manifest) -> bool:
    """Whether Kubernetes knows this kind without an operator."""
    group, _, version = document["apiVersion"].rpartition("/")
    return bool(version) and group in GROUPS


def name_of(document: Manifest) -> str:
    """Kind and name, as `Deployment/tipserve`."""
    return f"{document['kind']}/{document['metadata'].get('name', '')}"


def faults(documents: list[Manifest]) -> list[str]:
    """What the schemas of any version say of the built-in kinds, and of pods within others."""
    found = []
    for document in documents:
        checked = [document] if is_builtin(document) else list(pods_within(document))
        for one in checked:
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(one, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    path = "/".join(map(str, error.absolute_path))
                    found.append(f"{name_of(one)} in {version}: {path}: {error.message}")
                except kubernetes_validate.SchemaNotFoundError as error:
                    found.append(f"{name_of(one)} in {version}: {error.message}")
    return found


def pods_within(document: Manifest) -> Iterator[Manifest]:
    """Pods that an operator would make of a custom resource, for checks that know only pods."""
    spec = document.get("spec") or {}
    if document["kind"] == "RayJob":
        cluster = spec["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]
        for index, group in enumerate(groups):
            yield _pod(document, index, group["template"]["spec"])
    if document["kind"] in ("ServingRuntime", "ClusterServingRuntime"):
        yield _pod(document, 0, {key: spec[key] for key in KEPT_OF_RUNTIMES if key in spec})


def _pod(document: Manifest, index: int, spec: Manifest) -> Manifest:
    metadata = {**document["metadata"], "name": f"{document['metadata']['name']}-{index}"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def faults_of_type(type_name: str, value: Any) -> list[tuple[str, str]] | None:
    """Fields and messages for a value of a type such as V1Container.

    None where no such type is known.
    """
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
