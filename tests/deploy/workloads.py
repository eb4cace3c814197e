"""Pods and what surrounds them, as found in a list of documents."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Manifest = dict[str, Any]

TEMPLATES = {"Deployment", "StatefulSet", "DaemonSet", "Job"}


@dataclass(frozen=True)
class Workload:
    """What makes pods.

    Attributes:
        document: The whole of it.
        pod: The pod's spec; of a ServingRuntime what it has of one.
        labels: Of its pods; of a ServingRuntime those that KServe is told.
    """

    document: Manifest
    pod: Manifest
    labels: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return called(self.document)

    @property
    def containers(self) -> list[Manifest]:
        """All containers, those of the start first."""
        return [*self.pod.get("initContainers", []), *self.pod.get("containers", [])]

    @property
    def servers(self) -> list[Manifest]:
        """The containers that run the server: our image's own entry point."""
        return [
            container
            for container in self.pod.get("containers", [])
            if "command" not in container and container.get("image", "").startswith("tipserve:")
        ]


def called(document: Manifest) -> str:
    """Kind and name, as kubectl has them."""
    return f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"


def of_kind(documents: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    """The documents of some kinds."""
    return [document for document in documents if document.get("kind") in kinds]


def workloads(documents: Iterable[Manifest]) -> list[Workload]:
    """All that makes pods and is written out in full."""
    found = []
    for document in documents:
        spec = document.get("spec", {})
        if document.get("kind") == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if document.get("kind") in {*TEMPLATES, "CronJob"}:
            template = spec["template"]
            labels = template.get("metadata", {}).get("labels", {})
            found.append(Workload(document, template["spec"], labels))
        elif document.get("kind") == "ServingRuntime":
            found.append(Workload(document, spec, spec.get("labels", {})))
    return found


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector fits; it is one with `matchLabels`, as all of ours are."""
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
