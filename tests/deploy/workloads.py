"""Workloads in documents, also those that operators make pods of."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

# Pods and what surrounds them, as found in a list of documents.

Manifest = dict[str, Any]
TEMPLATES = {"Deployment", "StatefulSet", "DaemonSet", "Job"}


@dataclass(frozen=True)
class Workload:
    """What makes pods.

    Attributes:
        document: The whole of it.
        pod: The pod's spec; of a ServingRuntime what it has of one.
        labels: Labels of its pods; for a ServingRuntime, those given to KServe.
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


# Pods that operators would make of custom resources, for checks that know only pods.


def pods_within(documents: list[Manifest]) -> list[Manifest]:
    """A Pod or a Job for each kind of pod that operators are asked for, named after its owner."""
    found = [_pod(*owned) for owned in (*_of_ray(documents), *_of_kserve(documents))]
    for owner, template in _of_trainer(documents):
        # The Trainer makes Jobs, which need no probes.
        job = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": template}}
        found.append({**job, "metadata": {"name": owner["metadata"]["name"]}})
    for number, pod in enumerate(found):
        pod["metadata"]["name"] += f"-{number}"
    return found


def _pod(owner: Manifest, template: Manifest) -> Manifest:
    labels = template.get("metadata", {}).get("labels", {})
    metadata = {"name": owner["metadata"]["name"], "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _of_ray(documents: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    for job in of_kind(documents, "RayJob"):
        cluster = job["spec"].get("rayClusterSpec", {})
        groups = [cluster.get("headGroupSpec", {}), *cluster.get("workerGroupSpecs", ())]
        for group in groups:
            if "template" in group:
                yield job, group["template"]


def _of_kserve(documents: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    runtimes = {
        runtime["metadata"]["name"]: runtime["spec"]
        for runtime in of_kind(documents, "ServingRuntime", "ClusterServingRuntime")
    }
    for inference in of_kind(documents, "InferenceService"):
        predictor = inference["spec"].get("predictor", {})
        runtime = runtimes.get(predictor.get("model", {}).get("runtime"))
        if runtime:
            # What the predictor says of pods is laid over what its runtime says.
            whole = {**runtime, **predictor}
            spec = {key: whole[key] for key in _POD_FIELDS_OF_KSERVE & whole.keys()}
            yield inference, {"metadata": {"labels": runtime.get("labels", {})}, "spec": spec}


# Those of a PodSpec that a runtime or a predictor is likely to have; both have many fields more.
_POD_FIELDS_OF_KSERVE = {
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "imagePullSecrets",
    "initContainers",
    "nodeSelector",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
}


def _of_trainer(documents: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    for job in of_kind(documents, "TrainJob"):
        trainer = job["spec"].get("trainer", {})
        for patch in job["spec"].get("runtimePatches", ()):
            spec = patch["trainingRuntimeSpec"]["template"]["spec"]
            for replicated in spec.get("replicatedJobs", ()):
                template = replicated["template"]["spec"]["template"]
                yield job, {**template, "spec": _trained(template["spec"], trainer)}


def _trained(spec: Manifest, trainer: Manifest) -> Manifest:
    """A patch of a pod with what the trainer gives its containers."""
    given: dict[str, Any] = {
        key: trainer[key] for key in ("image", "command", "args", "env") if key in trainer
    }
    if "resourcesPerNode" in trainer:
        given["resources"] = trainer["resourcesPerNode"]
    containers = [{**given, **container} for container in spec.get("containers", ())]
    return {**spec, "containers": containers}
